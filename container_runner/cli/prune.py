"""`container-runner prune`: remove what nobody needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import anyio
from cyclopts import Parameter

from container_runner.cli import containers
from container_runner.cli.containers import ContainerFlags, JsonFlag, print_json

if TYPE_CHECKING:
    from container_runner.engine.engine import ContainerInfo


def prune(
    *,
    dry_run: Annotated[bool, Parameter(name=["--dry-run", "-n"], negative=())] = False,
    json: JsonFlag = False,
    flags: ContainerFlags | None = None,
) -> None:
    """Remove the containers that nobody needs, of all state folders.

    What runs that were killed have left of a carried workspace, in this state folder, is fetched first. What is kept of
    such workspaces, and no run refers to, goes a day later.

    Args:
        dry_run: Only say what would be removed, and why.
        json: Print a JSON list for programs.
    """
    found, left, fetched = anyio.run(_prune, flags or ContainerFlags(), dry_run)
    removed = [info for info in found if info.name not in left]
    if json:
        from container_runner.engine.manager import AGENT_LABEL

        answer = [
            {
                "name": info.name,
                "id": info.id,
                "agent": info.labels.get(AGENT_LABEL, ""),
                "reason": reason(info),
                "removed": not dry_run,
            }
            for info in removed
        ]
        print_json(answer)
    else:
        for run in fetched:
            print(f"{'would fetch' if dry_run else 'fetched'} the work of run {run}")
        for info in removed:
            print(f"{'would remove' if dry_run else 'removed'} {info.name}: {reason(info)}")
        if not found and not fetched:
            print("There is nothing to remove.", file=sys.stderr)
    containers.refuse_left(left)


async def _prune(flags: ContainerFlags, dry_run: bool) -> tuple[Sequence[ContainerInfo], dict[str, str], Sequence[str]]:
    """The containers, why some of them could not be removed, and the runs whose work was fetched."""
    from container_runner.runner.left import fetch_left, unfetched
    from container_runner.workspace.tidy import tidy_all

    manager = await containers.open_manager(flags)
    # What nobody needs now, nobody will need later: the dead stay dead, and what has ended is not started again.
    found = await manager.prune(dry_run=True)
    if dry_run:
        return found, {}, [carry.run for carry in unfetched(manager.state_dir)]
    fetched = [carrier.carry.run for carrier in await fetch_left(manager)]
    await tidy_all(manager.state_dir)
    return found, await containers.remove(manager, found), fetched


def reason(info: ContainerInfo) -> str:
    """Why a container is not needed."""
    from container_runner.engine.manager import KIND_LABEL
    from container_runner.engine.owner import Owner

    owner = Owner.from_labels(info.labels)
    if info.labels.get(KIND_LABEL) == "persistent":
        return f"it is {info.status}; its agent gets a new one when it is needed"
    if owner is not None and owner.state == "dead":
        return f"its owner, process {owner.pid}, is dead"
    return "its time limit has passed"
