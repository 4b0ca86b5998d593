"""Everything that can be configured, and how the value of one field is read."""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from typing import Any, Final

import attrs

from container_runner.config.container import ContainerConfig
from container_runner.config.laws import refuse
from container_runner.config.limits import RecordLimits
from container_runner.config.values import parse_duration, parse_size
from container_runner.errors import ConfigError
from container_runner.options import Agent, ExecuteOptions

BOX: Final = tuple(field.name for field in attrs.fields(ContainerConfig))
AGENT: Final = tuple(field.name for field in attrs.fields(Agent) if field.name not in ("name", "workspace"))

REQUEST: Final = tuple(
    field.name
    for field in attrs.fields(ExecuteOptions)
    if field.name not in ("prompt", "agent", "resume", "fork", "session_id")
)

RECORDS: Final[Mapping[str, str]] = {f"records_{field.name}": field.name for field in attrs.fields(RecordLimits)}
"""The fields of `RecordLimits`, by what they are called here."""

FIELDS: Final = (*BOX, "command", *AGENT, *REQUEST, "records", *RECORDS)
"""Everything that can be configured: the box, the command that stands for claude, the agent, the request, the records
of runs."""

HINTS: Final[Mapping[str, Any]] = {
    "command": str,
    **typing.get_type_hints(ContainerConfig),
    **{name: hint for name, hint in typing.get_type_hints(Agent).items() if name in AGENT},
    **{name: hint for name, hint in typing.get_type_hints(ExecuteOptions).items() if name in REQUEST},
    "records": bool,
    **{name: typing.get_type_hints(RecordLimits)[field] for name, field in RECORDS.items()},
}


def parse(name: str, given: object, source: str) -> Any:
    """What the field *name* holds if *given* is said of it, as TOML has it.

    Raises:
        ConfigError: it is refused; the error names *source*.
    """
    try:
        return _parse(name, given)
    except ConfigError as error:
        # A flag and a file have no None, which is how Python says that there is no limit.
        allowed = _TIMEOUT if name.endswith("timeout") else error.allowed.removesuffix(", or None")
        raise ConfigError(error.field, error.value, allowed, source=source) from None


_TIMEOUT: Final = "a number of seconds, or a time such as 90s, 30m or 4h, up to 30 days; 0 for no limit"


def _parse(name: str, value: Any) -> Any:
    # A value of one field and nothing else: the classes themselves say what they take.
    if name in BOX:
        return getattr(ContainerConfig(**{"image": "image", name: value}), name)
    if name in AGENT:
        return getattr(Agent(**{"name": "agent", name: value}), name)
    if name == "command":
        return value if isinstance(value, str) and value.strip() else refuse(name, value, "a command, as in a shell")
    if name == "records":
        return value if isinstance(value, bool) else refuse(name, value, "true or false")
    if name in RECORDS:
        return getattr(RecordLimits(**{RECORDS[name]: value}), RECORDS[name])
    if (name.endswith("timeout") or name == "line_limit") and value == 0 and not isinstance(value, bool):
        return None  # no limit, which TOML has no word for
    if name.endswith("timeout"):
        value = parse_duration(value, name) if isinstance(value, str) else value
    if name == "line_limit" and isinstance(value, str):
        value = parse_size(value, name)
    if name == "include_partial_messages" and not isinstance(value, bool):
        refuse(name, value, "true or false")
    return getattr(ExecuteOptions(prompt="", agent=Agent(name="agent"), **{name: value}), name)


def from_text(name: str, given: object) -> object:
    """Text for the field *name* as the number or the boolean that it wants, where it is one. Others stay."""
    if not isinstance(given, str):
        return given
    kinds = typing.get_args(HINTS[name]) or (HINTS[name],)
    if bool in kinds and given.lower() in ("true", "false", "1", "0", "yes", "no"):
        return given.lower() in ("true", "1", "yes")
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(given)
            except ValueError:
                continue
    return given


@functools.cache
def defaults() -> Mapping[str, Any]:
    """The value of each of `FIELDS` that nobody set. There is no image, and no command but claude."""
    agent = Agent(name="agent")
    box, request = ContainerConfig(image="image"), ExecuteOptions(prompt="", agent=agent)
    holders = (
        *((name, box) for name in BOX),
        *((name, agent) for name in AGENT),
        *((name, request) for name in REQUEST),
    )
    return {
        **{name: getattr(holder, name) for name, holder in holders},
        "image": None,
        "command": None,
        "records": True,
        **{name: getattr(RecordLimits(), field) for name, field in RECORDS.items()},
    }


def flag(name: str) -> str:
    """How the command line spells a field."""
    return f"--{name.replace('_', '-')}"


@attrs.frozen
class Tables:
    """What stands at the top of the operator's file: tables for every agent, for one each, and for who asks for one."""

    defaults: Mapping[str, Any] = attrs.field(factory=dict)
    agents: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    profiles: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
