"""`container-runner completion`: what makes a shell complete our commands and flags."""

from __future__ import annotations

from typing import Literal


def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print the completion script of a shell.

    Parameters
    ----------
    shell
        bash, zsh or fish.
    """
    from container_runner.cli.app import app

    print(app.generate_completion(shell=shell), end="")
