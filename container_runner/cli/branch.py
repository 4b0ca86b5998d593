"""`container-runner branch`: the work of a run as a branch."""

from __future__ import annotations

import sys

from container_runner.cli.changes import WorkFlags, finding_rows, one_line, shown, with_changes
from container_runner.cli.containers import JsonFlag, print_json
from container_runner.config.converter import unstructured
from container_runner.errors import ConfigError
from container_runner.workspace.branch import Branched
from container_runner.workspace.changes import Changes


def branch(run: str = "", name: str = "", *, json: JsonFlag = False, flags: WorkFlags | None = None) -> None:
    """Make a branch of what a run has done. Your files, your index and what is checked out stay as they are.

    Args:
        run: The id of a run, or its beginning. Default: the last one on this folder.
        name: The branch. One word alone is the name.
        json: Print JSON for programs instead of text for people.
    """
    if not name:
        run, name = "", run
    if not name:
        raise ConfigError("NAME", None, "the name of a branch, as in: container-runner branch agent/fix-1")

    async def work(found: Changes) -> tuple[Changes, Branched]:
        return found, await found.branch(name)

    found, made = with_changes(run, flags or WorkFlags(), work)
    if json:
        print_json(unstructured(made))
        return
    print(f"The branch {one_line(made.name)} is at {made.commit[:12]}.")
    for row in finding_rows(found.findings, "Look at these before you check it out:"):
        print(row, file=sys.stderr)
    if made.left_out:
        print("These are not in it, because git would keep them in another form; apply takes them:", file=sys.stderr)
        for path in made.left_out:
            print(f"  {shown(path)}", file=sys.stderr)
