"""`container-runner ps`: the containers that there are."""

from __future__ import annotations

import datetime as dt
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import anyio
from cyclopts import Parameter

from container_runner.cli.containers import ContainerFlags, JsonFlag, Row, age, open_manager, rows
from container_runner.cli.text import clean


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
    found = anyio.run(_rows, flags or ContainerFlags(), all_)
    if json:
        import orjson

        sys.stdout.buffer.write(orjson.dumps([row.to_dict() for row in found]) + b"\n")
    elif found:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(table(found, dt.datetime.now(dt.UTC), width))
    else:
        where = "" if all_ else " in this state folder; --all shows those of others"
        print(f"There are no containers{where}.", file=sys.stderr)


async def _rows(flags: ContainerFlags, everywhere: bool) -> list[Row]:
    return await rows(await open_manager(flags), everywhere=everywhere)


GIVE_WAY = ("KIND", "OWNER", "IN USE", "AGE", "STATUS")
"""The columns that are left out where there is no room, the first of them first."""


def table(found: Sequence[Row], now: dt.datetime, width: int | None = None) -> str:
    """Rows as aligned columns under a head, as many as *width* has room for, but always what `stop` needs."""
    columns: dict[str, list[str]] = {}
    for row in found:
        used = "?" if row.in_use is None else "yes" if row.in_use else "no"
        facts = {
            # A label can say anything: any program can make a container that claims to be ours.
            "AGENT": clean(row.agent),
            "NAME": row.name,
            "KIND": clean(row.kind),
            "STATUS": row.status,
            "AGE": age(row.created, now),
            "OWNER": f"{row.owner} ({row.owner_pid})" if row.owner in ("alive", "dead") else row.owner,
            "IN USE": used,
        }
        for name, word in facts.items():
            columns.setdefault(name, []).append(word)
    if not _fits(columns, width):
        # The name is the agent's and the run's, and the agent stands beside it.
        columns = {"RUN" if name == "NAME" else name: words for name, words in columns.items()}
        columns["RUN"] = [row.short for row in found]
        columns["OWNER"] = [row.owner for row in found]
    for name in GIVE_WAY:
        if not _fits(columns, width):
            del columns[name]
    padded = ([word.ljust(size) for word in (name, *words)] for (name, words), size in _sizes(columns))
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def _sizes(columns: Mapping[str, Sequence[str]]) -> list[tuple[tuple[str, Sequence[str]], int]]:
    return [((name, words), max(map(len, (name, *words)))) for name, words in columns.items()]


def _fits(columns: Mapping[str, Sequence[str]], width: int | None) -> bool:
    return width is None or sum(size + 2 for _, size in _sizes(columns)) - 2 <= width
