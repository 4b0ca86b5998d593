"""`container-runner branch`: the work of a run as a branch."""

from __future__ import annotations

import sys

from container_runner.cli.changes import WorkFlags, one_line, shown, with_changes
from container_runner.cli.containers import JsonFlag, print_json
from container_runner.config.converter import unstructured
from container_runner.errors import ConfigError


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
    made = with_changes(run, flags or WorkFlags(), lambda found: found.branch(name))
    if json:
        print_json(unstructured(made))
        return
    print(f"The branch {one_line(made.name)} is at {made.commit[:12]}.")
    if made.left_out:
        print("These are not in it, because git would keep them in another form; apply takes them:", file=sys.stderr)
        for path in made.left_out:
            print(f"  {shown(path)}", file=sys.stderr)
