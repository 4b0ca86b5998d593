"""`container-runner completion`: what makes a shell complete our commands and flags."""

from __future__ import annotations

from typing import Literal

from container_runner.cli.containers import JsonFlag


def completion(shell: Literal["bash", "zsh", "fish"], *, json: JsonFlag = False) -> None:
    """Print the completion script of a shell.

    Parameters
    ----------
    shell
        bash, zsh or fish.
    json
        Print a JSON object with the script in it.
    """
    from container_runner.cli.app import app

    script = app.generate_completion(shell=shell)
    if json:
        from container_runner.cli.logs import print_json

        print_json({"shell": shell, "script": script})
    else:
        print(script, end="")
