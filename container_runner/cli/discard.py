"""`container-runner discard`: forget the work of a run."""

from __future__ import annotations

import anyio

from container_runner.cli.changes import WorkFlags, with_changes
from container_runner.cli.containers import JsonFlag, print_json, state_folder
from container_runner.runner.left import discard_left, unfetched
from container_runner.workspace.changes import Changes
from container_runner.workspace.tidy import tidy_all


def discard(run: str = "", *, json: JsonFlag = False, flags: WorkFlags | None = None) -> None:
    """Forget what a run has done. What was applied, or is in a branch, stays.

    It is also removed where it could not be fetched from, or is too large to be fetched. What is only kept for it takes
    up room for another day.

    Args:
        run: The id of a run, or its beginning. Default: the last one on this folder.
        json: Print JSON for programs instead of text for people.
    """

    flags = flags or WorkFlags()
    state = state_folder(flags.state_dir)

    async def work(found: Changes) -> str:
        await discard_left(state, found.run)
        await found.discard()
        await tidy_all(state)
        return found.run

    stuck = [carry.run for carry in unfetched(state) if run and carry.run.startswith(run)]
    if len(stuck) == 1:
        (name,) = stuck
        anyio.run(discard_left, state, name)
    else:
        name = with_changes(run, flags, work)
    if json:
        print_json({"run": name})
    else:
        print(f"The work of run {name[:12]} is forgotten.")
