"""`container-runner completion`: what makes a shell complete our commands and flags."""

from __future__ import annotations

from typing import Literal

from container_runner.cli.containers import JsonFlag, print_json

_ADDED = {
    "bash": "",
    # The file is the function's body where zsh found it in $fpath, and a script where somebody sourced it.
    "zsh": """
if [[ $funcstack[1] == _container-runner ]]; then
  _cyclopts_container-runner "$@"
else
  compdef _cyclopts_container-runner container-runner
fi
""",
    # fish offers the folder's files for every word, unless it is told where there are none.
    "fish": """
complete -c container-runner -f
complete -c container-runner -n '__fish_container-runner_using_command batch' -F
""",
}
"""What the generated scripts lack."""


def completion(shell: Literal["bash", "zsh", "fish"], *, json: JsonFlag = False) -> None:
    """Print the completion script of a shell.

    Args:
        shell: bash, zsh or fish.
        json: Print a JSON object with the script in it.
    """
    from container_runner.cli.app import app

    script = app.generate_completion(shell=shell) + _ADDED[shell]
    if json:
        print_json({"shell": shell, "script": script})
    else:
        print(script, end="")
