"""Everything that can be configured, and how the value of one field is read."""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import attrs

from container_runner.config.container import ContainerConfig
from container_runner.config.laws import refuse
from container_runner.config.limits import RecordLimits
from container_runner.errors import ConfigError
from container_runner.options import Agent, ExecuteOptions
from container_runner.quantities import parse_size

_NEEDED: Final[Mapping[Any, Mapping[str, Any]]] = {
    ContainerConfig: {"image": "image"},
    Agent: {"name": "agent"},
    ExecuteOptions: {"prompt": "", "agent": Agent(name="agent")},
    RecordLimits: {},
}
"""What none of these can be made without."""


def _names(kind: type[attrs.AttrsInstance], *without: str) -> tuple[str, ...]:
    return tuple(field.name for field in attrs.fields(kind) if field.name not in without)


BOX: Final = _names(ContainerConfig)
AGENT: Final = _names(Agent, "name", "workspace")
REQUEST: Final = _names(ExecuteOptions, "prompt", "agent", "resume", "fork", "from_run", "session_id")
RECORDS: Final[Mapping[str, str]] = {f"records_{name}": name for name in _names(RecordLimits)}
"""The fields of `RecordLimits`, by what they are called here."""

FIELDS: Final = (*BOX, "agent_kind", "command", *AGENT, *REQUEST, "records", *RECORDS)
"""Everything that can be configured; "agent_kind" says which agent runs, and "command" what runs instead of one."""

OWNERS: Final[Mapping[str, tuple[Any, str]]] = {
    **{name: (ContainerConfig, name) for name in BOX},
    **{name: (Agent, name) for name in AGENT},
    **{name: (ExecuteOptions, name) for name in REQUEST},
    **{name: (RecordLimits, field) for name, field in RECORDS.items()},
}
"""The class that each of `FIELDS` is of, but "agent_kind", "command" and "records", and what it is called there."""

_TYPES: Final = {kind: typing.get_type_hints(kind) for kind in _NEEDED}
HINTS: Final[Mapping[str, Any]] = {
    **{name: _TYPES[kind][field] for name, (kind, field) in OWNERS.items()},
    "agent_kind": str,
    "command": str,
    "records": bool,
}


def parse(name: str, given: object, source: str) -> Any:
    """What the field *name* holds if *given* is said of it, as TOML has it.

    Raises:
        ConfigError: it is refused; the error names *source*.
    """
    try:
        return _parse(name, given)
    except ConfigError as error:
        allowed = error.allowed.removesuffix(", or None")  # which a flag and a file have no word for
        if name.endswith("timeout"):
            allowed = "a number of seconds, or a time such as 90s, 30m or 4h, up to 30 days; 0 for no limit"
        told = error.told if allowed == error.allowed else None
        raise ConfigError(error.field, error.value, allowed, source=source, told=told) from None


def _parse(name: str, value: Any) -> Any:
    if name == "agent_kind":
        return value if isinstance(value, str) and value else refuse(name, value, "the name of an agent, as codex")
    if name == "command":
        return value if isinstance(value, str) and value.strip() else refuse(name, value, "a command, as in a shell")
    if name in ("records", "include_partial_messages", "wait_for_login"):
        return value if isinstance(value, bool) else refuse(name, value, "true or false")
    if (name.endswith("timeout") or name == "line_limit") and value == 0 and not isinstance(value, bool):
        return None  # no limit, which TOML has no word for
    if isinstance(value, str) and name == "line_limit":
        value = parse_size(value, name)
    return _made(name, value)


def _made(name: str, *value: Any) -> Any:
    """What a field holds if this value is given for it, or none. The classes themselves say what they take."""
    kind, field = OWNERS[name]
    return getattr(kind(**{**_NEEDED[kind], **dict.fromkeys([field] * len(value), *value)}), field)


def from_text(name: str, given: object) -> object:
    """Text for the field *name* as the number or the boolean that it wants, where it is one. Others stay."""
    if not isinstance(given, str):
        return given
    kinds = typing.get_args(HINTS[name]) or (HINTS[name],)
    if bool in kinds and given.lower() in ("true", "false", "1", "0", "yes", "no"):
        return given.lower() in ("true", "1", "yes")
    for kind in (int, float):
        if kind in kinds:
            with suppress(ValueError):
                return kind(given)
    return given


@functools.cache
def defaults() -> Mapping[str, Any]:
    """The value of each of `FIELDS` that nobody set. There is no image, and no command: claude runs."""
    others = {"image": None, "agent_kind": "claude", "command": None, "records": True}
    return {**{name: _made(name) for name in OWNERS}, **others}


def flag(name: str) -> str:
    """How the command line spells a field."""
    return f"--{name.replace('_', '-')}"


@attrs.frozen
class Tables:
    """What stands at the top of the operator's file: tables for every agent, for one each, and for who asks for one."""

    defaults: Mapping[str, Any] = attrs.field(factory=dict)
    agents: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    profiles: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
