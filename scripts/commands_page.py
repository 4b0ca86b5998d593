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
Every command but `attach` takes `--json`, and prints plain text without colours into a pipe or where `NO_COLOR` is set.
No command but `chat` and `attach` ever asks a question, so `--no-input` is understood and changes nothing.
The exit codes are those of [the errors](errors.md); 0 is success.
What is refused is told on stderr, in words, also with `--json`.
"""


SHARED = ("Agent", "Run", "Box")
"""The groups of flags that several commands take."""

SHARED_HEAD = """
## The flags of a run

`run`, `batch`, `chat`, `attach`, `acp`, `shim`, `argv`, `doctor` and `config` take these.
"""


def page() -> str:
    # cyclopts names a command of a command after the program that runs, which is not ours here.
    with patch.object(sys, "argv", ["container-runner"]):
        body = app.generate_docs(heading_level=2)
    body = body[body.index("**Commands**") :]
    body = re.sub(r"[ \t]+$", "", body, flags=re.MULTILINE)
    head, *sections = re.split(r"^(?=### )", body, flags=re.MULTILINE)
    shared = _groups(next(section for section in sections if section.startswith("### container-runner run\n")))
    told = [SHARED_HEAD.strip(), *(f"**{name}**:\n\n{text}" for name, text in shared.items())]
    parts = [HEAD.strip(), head.strip(), *(_without(section, shared).strip() for section in sections), *told]
    return "\n\n".join(parts) + "\n"


_GROUP = re.compile(rf"^\*\*({'|'.join(SHARED)})\*\*:\n\n((?:(?!\*\*|#).*\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"^\* .*(?:\n {4}.*)*", re.MULTILINE)


def _groups(section: str) -> dict[str, str]:
    """What a command's section says of each of the shared groups."""
    return {name: text.strip() for name, text in _GROUP.findall(f"{section}\n")}


def _without(section: str, shared: dict[str, str]) -> str:
    """The section without the flags that stand in the shared list, with a link to that, and what it lacks of it."""
    own = {entry for text in _groups(section).values() for entry in _ENTRY.findall(text)}
    if not own:
        return section
    every = [entry for text in shared.values() for entry in _ENTRY.findall(text)]
    assert own <= {*every}, own - {*every}
    lacking = [f"`{entry.split('`')[1].split(',')[0].split(' ')[0]}`" for entry in every if entry not in own]
    but = f", but for {', '.join(lacking)}" if lacking else ""
    before, _, _ = section.partition(f"**{next(iter(_groups(section)))}**:")
    after = _GROUP.sub("", section.removeprefix(before)).strip()
    return f"{before.rstrip()}\n\nAnd [the flags of a run](#the-flags-of-a-run){but}.\n\n{after}"
