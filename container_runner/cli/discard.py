"""`container-runner discard`: forget the work of a run."""

from __future__ import annotations

from container_runner.cli.changes import WorkFlags, with_changes
from container_runner.cli.containers import JsonFlag, print_json
from container_runner.workspace.changes import Changes


def discard(run: str = "", *, json: JsonFlag = False, flags: WorkFlags | None = None) -> None:
    """Forget what a run has done. What was applied, or is in a branch, stays.

    Args:
        run: The id of a run, or its beginning. Default: the last one on this folder.
        json: Print JSON for programs instead of text for people.
    """

    async def work(found: Changes) -> str:
        await found.discard()
        return found.run

    name = with_changes(run, flags or WorkFlags(), work)
    if json:
        print_json({"run": name})
    else:
        print(f"The work of run {name[:12]} is forgotten.")
