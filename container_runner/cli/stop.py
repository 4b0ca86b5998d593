"""`container-runner stop`: end containers, in use or not."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated

import anyio
import attrs
from cyclopts import Parameter

from container_runner.cli import containers
from container_runner.cli.containers import ContainerFlags, JsonFlag, Row, print_json
from container_runner.errors import ConfigError, ContainerGoneError


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
    chosen, left = anyio.run(_stop, names, flags or ContainerFlags())
    removed = [row for row in chosen if row.name not in left]
    if json:
        print_json([attrs.asdict(row) for row in removed])
    else:
        for row in removed:
            print(row.name)
    containers.refuse_left(left)


async def _stop(names: Sequence[str], flags: ContainerFlags) -> tuple[list[Row], dict[str, str]]:
    manager = await containers.open_manager(flags)
    chosen = select(await containers.rows(manager, everywhere=True), names)
    return chosen, await containers.remove(manager, chosen)


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
            candidates = sorted({*(row.agent for row in here), *(row.name for row in here)})
            near = difflib.get_close_matches(name, candidates, n=1)
            step = f"Did you mean {near[0]}?" if near else "See what there is with `container-runner ps`."
            raise ContainerGoneError(f"There is no container and no agent's container named {name!r}.", next_step=step)
        chosen.update((row.name, row) for row in found)
    return list(chosen.values())
