"""`container-runner completion`: what makes a shell complete our commands and flags, and the names of agents."""

from __future__ import annotations

import re
import sys
from typing import Final, Literal

from container_runner.cli.containers import JsonFlag, print_json

_ADDED: Final = {
    "bash": """
_container_runner_agents() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
  [[ $cur == = ]] && cur=
  [[ $prev == = ]] && prev=${COMP_WORDS[COMP_CWORD-2]}
  if [[ $prev == --agent || ($COMP_CWORD == 2 && ${COMP_WORDS[1]} =~ ^(shell|stop)$ && $cur != -*) ]]; then
    COMPREPLY=($(cd "${XDG_STATE_HOME:-STATE}/container-runner/sessions" 2>/dev/null && compgen -d -- "$cur"))
  else
    _container_runner "$@"
  fi
}
complete -F _container_runner_agents container-runner
""",
    # The file is the function's body where zsh found it in $fpath, and a script where somebody sourced it.
    "zsh": """
_container-runner-agents() {
  local -a agents=("${XDG_STATE_HOME:-STATE}"/container-runner/sessions/*(N/:t))
  if [[ $PREFIX == --agent=* ]]; then
    compset -P '--agent='
    compadd -a agents
  elif [[ $words[CURRENT-1] == --agent || ($CURRENT == 3 && $words[2] == (shell|stop) && $PREFIX != -*) ]]; then
    compadd -a agents
  else
    _cyclopts_container-runner "$@"
  fi
}
if [[ $funcstack[1] == _container-runner ]]; then
  _container-runner-agents "$@"
else
  compdef _container-runner-agents container-runner
fi
""",
    # fish offers the folder's files for every word, unless it is told where there are none.
    "fish": """
function __fish_container-runner_agents
  set -l state "STATE"
  test -n "$XDG_STATE_HOME"; and set state $XDG_STATE_HOME
  for agent in $state/container-runner/sessions/*/
    basename $agent
  end
end
complete -c container-runner -f
complete -c container-runner -n '__fish_container-runner_using_command batch' -F
complete -c container-runner -n '__fish_container-runner_using_command shell' -a '(__fish_container-runner_agents)'
complete -c container-runner -n '__fish_container-runner_using_command stop' -a '(__fish_container-runner_agents)'
""",
}
"""What the generated scripts lack. Each agent has a folder; STATE is where they are if XDG_STATE_HOME does not say."""

_STATE: Final = "$HOME/Library/Application Support" if sys.platform == "darwin" else "$HOME/.local/state"


def completion(shell: Literal["bash", "zsh", "fish"], *, json: JsonFlag = False) -> None:
    """Print the completion script of a shell.

    Args:
        shell: bash, zsh or fish.
        json: Print a JSON object with the script in it.
    """
    from container_runner.cli.app import app

    script = app.generate_completion(shell=shell)
    if shell == "fish":
        script = re.sub(r"(?<= -l agent) -r\b", " -x -a '(__fish_container-runner_agents)'", script)
    script += _ADDED[shell].replace("STATE}", f"{_STATE}}}").replace('"STATE"', f'"{_STATE}"')
    if json:
        print_json({"shell": shell, "script": script})
    else:
        print(script, end="")
