"""`container-runner ps`: the containers that there are."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Sequence
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

    Parameters
    ----------
    all_
        Those of every state folder, not only of this one.
    json
        Print a JSON list for programs instead of a table for people.
    """
    found = anyio.run(_rows, flags or ContainerFlags(), all_)
    if json:
        import orjson

        sys.stdout.buffer.write(orjson.dumps([row.to_dict() for row in found]) + b"\n")
    elif found:
        print(table(found, dt.datetime.now(dt.UTC)))
    else:
        where = "" if all_ else " in this state folder; --all shows those of others"
        print(f"There are no containers{where}.", file=sys.stderr)


async def _rows(flags: ContainerFlags, everywhere: bool) -> list[Row]:
    return await rows(await open_manager(flags), everywhere=everywhere)


def table(found: Sequence[Row], now: dt.datetime) -> str:
    """Rows as aligned columns under a head."""
    lines = [("AGENT", "NAME", "KIND", "STATUS", "AGE", "OWNER", "IN USE")]
    for row in found:
        owner = f"{row.owner} ({row.owner_pid})" if row.owner in ("alive", "dead") else row.owner
        used = "?" if row.in_use is None else "yes" if row.in_use else "no"
        # A label can say anything: any program can make a container that claims to be ours.
        lines.append((clean(row.agent), row.name, clean(row.kind), row.status, age(row.created, now), owner, used))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
