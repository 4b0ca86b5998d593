"""`container-runner ps`: the containers that there are."""

from __future__ import annotations

import datetime as dt
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import anyio
import attrs
from cyclopts import Parameter

from container_runner.cli.containers import ContainerFlags, JsonFlag, Row, age, open_manager, print_json, rows
from container_runner.cli.logs import columns
from container_runner.cli.text import clean, line

if TYPE_CHECKING:
    from container_runner.workspace.carry import Carry


def ps(
    *,
    all_: Annotated[bool, Parameter(name=["--all", "-a"], negative=())] = False,
    json: JsonFlag = False,
    flags: ContainerFlags | None = None,
) -> None:
    """List the containers of your agents, oldest first.

    A terminal that is too narrow gets RUN instead of NAME, which `stop` and `logs` take too, and fewer columns.

    Args:
        all_: Those of every state folder, not only of this one.
        json: Print a JSON list for programs instead of a table for people.
    """
    found, left = anyio.run(_found, flags or ContainerFlags(), all_)
    if json:
        print_json([attrs.asdict(row) for row in found])
    elif found:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(table(found, dt.datetime.now(dt.UTC), width))
    else:
        where = "" if all_ else " in this state folder; --all shows those of others"
        print(f"There are no containers{where}.", file=sys.stderr)
    for carry in left:
        told = f"work not fetched: run {carry.run[:12]} of {clean(carry.agent)} on {clean(carry.workspace)}"
        print(f"{told}; `container-runner prune` fetches it.", file=sys.stderr)


async def _found(flags: ContainerFlags, everywhere: bool) -> tuple[list[Row], list[Carry]]:
    """The containers, and the carried workspaces whose work nobody has fetched."""
    manager = await open_manager(flags)
    from container_runner.runner.left import unfetched

    return await rows(manager, everywhere=everywhere), unfetched(manager.state_dir)


GIVE_WAY = ("KIND", "OWNER", "IN USE", "AGE", "STATUS")
"""The columns that are left out where there is no room, the first of them first."""


def table(found: Sequence[Row], now: dt.datetime, width: int | None = None) -> str:
    """Rows as aligned columns under a head, as many as *width* has room for, but always what `stop` needs."""
    words: dict[str, list[str]] = {}
    for row in found:
        facts = {
            # A label can say anything: any program can make a container that claims to be ours.
            "AGENT": line(row.agent),
            "NAME": row.name,
            "KIND": line(row.kind),
            "STATUS": row.status,
            "AGE": age(row.created, now),
            "OWNER": f"{_owner(row)} ({row.owner_pid})" if _owner(row) in ("alive", "dead") else _owner(row),
            "IN USE": {None: "?", True: "yes", False: "no"}[row.in_use],
        }
        for name, word in facts.items():
            words.setdefault(name, [name]).append(word)
    if not _fits(words, width):
        # The name is the agent's and the run's, and the agent stands beside it.
        words = {"RUN" if name == "NAME" else name: column for name, column in words.items()}
        words["RUN"] = ["RUN", *(row.short for row in found)]
        words["OWNER"] = ["OWNER", *map(_owner, found)]
    for name in GIVE_WAY:
        if not _fits(words, width):
            del words[name]
    return columns(list(zip(*words.values(), strict=True)))


def _owner(row: Row) -> str:
    """What a person is told: that who made a kept container has ended is as it should be."""
    return "-" if row.kind == "persistent" and row.owner == "dead" else row.owner


def _fits(words: Mapping[str, Sequence[str]], width: int | None) -> bool:
    return width is None or sum(max(map(len, column)) + 2 for column in words.values()) - 2 <= width
