"""docs/reference/commands.md, from the help of the command itself."""

from __future__ import annotations

import re
import sys
from unittest.mock import patch

from container_runner.cli.app import app

HEAD = """
<!-- Written by `python -m scripts.reference` from the help of the commands: change that. -->

# Commands

`container-runner COMMAND --help` says the same at a terminal.
Every command takes `--json`, and prints plain text without colours into a pipe or where `NO_COLOR` is set.
No command ever asks a question, so `--no-input` is understood and changes nothing.
The exit codes are those of [the errors](errors.md); 0 is success.
What is refused is told on stderr, in words, also with `--json`.
"""


def page() -> str:
    # cyclopts names a command of a command after the program that runs, which is not ours here.
    with patch.object(sys, "argv", ["container-runner"]):
        body = app.generate_docs(heading_level=2)
    body = body[body.index("**Commands**") :]
    body = re.sub(r"[ \t]+$", "", body, flags=re.MULTILINE)
    return f"{HEAD.strip()}\n\n{body.strip()}\n"
