"""The fake docker that the package ships, set up in a folder, with an agent that runs on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import attrs

import container_runner
from container_runner.testing.scripted import AGENT

PROGRAM = """\
#!/bin/sh
export DOCKER_FAKE_AGENT='{agent}' DOCKER_FAKE_CALLS='{folder}/calls' PYTHONPATH='{path}'
exec '{python}' -S -m container_runner.testing.docker "$@"
"""


def write(folder: Path, agent: Path = AGENT) -> Path:
    """Write the engine into *folder*: a program that runs *agent* for `claude`.

    Returns:
        Its path, for --engine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "docker"
    # Nothing else of the environment is imported: that is twice as fast.
    path = ":".join(str(Path(module.__file__ or "").parent.parent) for module in (container_runner, attrs))
    program.write_text(PROGRAM.format(agent=agent, folder=folder, path=path, python=sys.executable))
    program.chmod(0o755)
    return program


def calls(folder: Path) -> list[dict[str, Any]]:
    """The commands that the engine in *folder* got, oldest first, see `container_runner.testing.docker`."""
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
