"""docs/reference/commands.md, from the help of the command itself."""

from __future__ import annotations

import re

from container_runner.cli.app import app

HEAD = """
<!-- Written by `python -m scripts.reference` from the help of the commands: change that. -->

# Commands

`container-runner COMMAND --help` says the same at a terminal.
Every command that prints data takes `--json`, and prints plain text without colours into a pipe.
No command ever asks a question.
The exit codes are those of [the errors](errors.md); 0 is success.
"""


def page() -> str:
    body = app.generate_docs(heading_level=2)
    body = body[body.index("**Commands**") :]
    body = re.sub(r"[ \t]+$", "", body, flags=re.MULTILINE)
    return f"{HEAD.strip()}\n\n{body.strip()}\n"
