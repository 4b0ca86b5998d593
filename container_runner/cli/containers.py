"""What the commands share that look at containers: which are meant, and what there is to say of each."""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import attrs
import orjson
from cyclopts import Parameter

from container_runner.config.tiers import NO_HOME
from container_runner.errors import CleanupError, ConfigError, EngineError
from container_runner.folders import expanded

if TYPE_CHECKING:
    from container_runner.config.tiers import Effective
    from container_runner.engine.engine import ContainerInfo, Engine
    from container_runner.engine.manager import Containers


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class EngineFlags:
    """Which engine is meant.

    Attributes:
        engine: auto, docker, podman, or a program's name or path. Default: as configured, else auto.
        config: Your configuration file. Default: config.toml in the folder for such things in your home.
        profile: The name of one of its [profiles].
    """

    engine: str | None = None
    config: Path | None = None
    profile: str | None = None


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class ContainerFlags(EngineFlags):
    """Which containers are meant.

    Attributes:
        state_dir: Where sessions and locks are kept. Default: the folder for such things in your home.
    """

    state_dir: Path | None = None


JsonFlag = Annotated[bool, Parameter(negative=())]
"""The type of --json."""


def print_json(value: object, option: int | None = None) -> None:
    """Print a value as JSON: one line, unless an *option* of orjson's says otherwise."""
    sys.stdout.buffer.write(orjson.dumps(value, option=option) + b"\n")


@attrs.frozen(kw_only=True)
class Row:
    """One container of ours."""

    name: str
    agent: str
    kind: str
    """"ephemeral" or "persistent"."""

    status: str
    """The engine's word: "running", "exited", "created" and the like."""

    created: dt.datetime
    owner: Literal["alive", "dead", "elsewhere", "unknown"]
    """What is known of the process that made it: it may be one of another machine."""

    owner_pid: int | None
    in_use: bool | None
    """Whether somebody runs something in it now. None where that can not be told: in another state folder."""

    is_here: bool
    """Whether it belongs to the state folder that was asked for."""

    id: str

    @property
    def short(self) -> str:
        """The container's name without what its agent's name says of it: the beginning of its run's id."""
        return self.name.removeprefix(f"container-runner-{self.agent}-")


def configured(flags: EngineFlags, *, agent: str = "-") -> Effective:
    """What the operator's file, the environment and these flags say of an agent. No workspace has a word in it.

    Raises:
        ConfigError: a value that is refused, named as the source that it came from.
    """
    from container_runner.config.tiers import effective

    given = {} if flags.engine is None else {"engine": flags.engine}
    return effective(agent=agent, workspace=Path(os.devnull), flags=given, file=flags.config, profile=flags.profile)


async def open_engine(flags: EngineFlags) -> Engine:
    """The engine that is meant.

    Raises:
        ConfigError: see `configured`.
        EngineError: there is none, or it does not answer.
    """
    from container_runner.box.environment import host_environment
    from container_runner.engine.engine import Engine

    return await Engine.probe(configured(flags).settings["engine"].value, host_environment())


async def open_manager(flags: ContainerFlags) -> Containers:
    """The containers of the engine and the state folder that are meant. It raises what `open_engine` does."""
    from container_runner.engine.manager import Containers

    return Containers(await open_engine(flags), state_folder(flags.state_dir))


def state_folder(given: Path | None) -> Path:
    """The state folder: the one that was *given*, or the one for such things in the user's home.

    Raises:
        ConfigError: none was given, and this user has no home.
    """
    import platformdirs

    try:
        place = given or platformdirs.user_state_path("container-runner", appauthor=False)
    except RuntimeError:
        raise ConfigError("HOME", None, NO_HOME) from None
    return expanded(place, "state_dir").absolute()


async def rows(manager: Containers, *, everywhere: bool = False) -> list[Row]:
    """Our containers, oldest first: of the manager's state folder, or *everywhere* on its engine."""
    from container_runner.engine.manager import STATE_LABEL, state_digest

    labels = None if everywhere else {STATE_LABEL: state_digest(manager.state_dir)}
    return [_row(manager, info) for info in await manager.containers(labels)]


def _row(manager: Containers, info: ContainerInfo) -> Row:
    from container_runner.engine.manager import AGENT_LABEL, KIND_LABEL, STATE_LABEL, state_digest
    from container_runner.engine.owner import Owner

    owner = Owner.from_labels(info.labels)
    here = info.labels.get(STATE_LABEL) == state_digest(manager.state_dir)
    known: Literal["alive", "dead", "elsewhere", "unknown"] = "unknown"
    if owner is not None:
        known = owner.state if owner.is_on_this_host else "elsewhere"
    kind = info.labels.get(KIND_LABEL, "")
    if info.status != "running":
        in_use: bool | None = False
    elif kind == "ephemeral":
        in_use = {"alive": True, "dead": False}.get(known)
    else:
        in_use = manager.is_in_use(info.name) if here else None
    return Row(
        name=info.name,
        agent=info.labels.get(AGENT_LABEL, ""),
        kind=kind,
        status=info.status,
        created=info.created,
        owner=known,
        owner_pid=None if owner is None else owner.pid,
        in_use=in_use,
        is_here=here,
        id=info.id,
    )


async def remove(manager: Containers, found: Iterable[Row | ContainerInfo]) -> dict[str, str]:
    """Remove containers, and return what the engine says of each that it could not remove, by name."""
    left: dict[str, str] = {}
    for one in found:
        try:
            await manager.remove(one.name)
        except EngineError as error:
            left[one.name] = f"{error.message} {error.stderr}".strip()
    return left


def refuse_left(left: dict[str, str]) -> None:
    """Raise a CleanupError if anything could not be removed."""
    if left:
        message = f"{len(left)} could not be removed: {', '.join(left)}."
        raise CleanupError(message, left=tuple(left), stderr="\n".join(left.values()))


def age(created: dt.datetime, now: dt.datetime) -> str:
    """How long ago something was, in its largest unit: "42s", "3m", "5h", "2d"."""
    seconds = max(0, int((now - created).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
