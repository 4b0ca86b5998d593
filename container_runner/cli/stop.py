"""`container-runner stop`: end containers, in use or not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import anyio
from cyclopts import Parameter

from container_runner.cli.containers import ContainerFlags, JsonFlag, Row, open_manager, rows
from container_runner.errors import CleanupError, ConfigError, ContainerGoneError, EngineError


def stop(
    *names: str,
    all_: Annotated[bool, Parameter(name=["--all", "-a"], negative=())] = False,
    json: JsonFlag = False,
    flags: ContainerFlags | None = None,
) -> None:
    """End and remove containers at once, whatever runs in them.

    Args:
        names: The names of agents, for all their containers in this state folder, or of containers; or what `ps`
            shows as RUN.
        all_: All containers of this state folder.
        json: Print a JSON list of what was removed.
    """
    if bool(names) == all_:
        raise ConfigError("NAMES", list(names) or None, "the names of agents or containers, or --all alone")
    removed, left = anyio.run(_stop, names, flags or ContainerFlags())
    if json:
        import orjson

        sys.stdout.buffer.write(orjson.dumps([row.to_dict() for row in removed]) + b"\n")
    else:
        for row in removed:
            print(row.name)
    if left:
        message = f"{len(left)} could not be removed: {', '.join(left)}."
        raise CleanupError(message, left=tuple(left), stderr="\n".join(left.values()))


async def _stop(names: Sequence[str], flags: ContainerFlags) -> tuple[list[Row], dict[str, str]]:
    manager = await open_manager(flags)
    known = await rows(manager, everywhere=True)
    removed: list[Row] = []
    left: dict[str, str] = {}
    for row in select(known, names):
        try:
            await manager.remove(row.name)
        except EngineError as error:
            left[row.name] = f"{error.message} {error.stderr}".strip()
        else:
            removed.append(row)
    return removed, left


def select(known: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows that *names* mean: of containers anywhere, or of agents here; without names, all that are here.

    Raises:
        ContainerGoneError: a name means none; the error names the nearest that does.
    """
    here = [row for row in known if row.is_here]
    if not names:
        return here
    chosen: dict[str, Row] = {}
    for name in names:
        found = (
            [row for row in known if row.name == name]
            or [row for row in here if row.agent == name]
            or [row for row in known if row.short == name]
        )
        if not found:
            import difflib

            candidates = sorted({*(row.agent for row in here), *(row.name for row in here)})
            near = difflib.get_close_matches(name, candidates, n=1)
            step = f"Did you mean {near[0]}?" if near else "See what there is with `container-runner ps`."
            raise ContainerGoneError(f"There is no container and no agent's container named {name!r}.", next_step=step)
        chosen.update((row.name, row) for row in found)
    return list(chosen.values())
