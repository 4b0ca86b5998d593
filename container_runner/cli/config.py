"""`container-runner config`: what the sources of configuration come to, and who said what."""

from __future__ import annotations

import functools
import json as json_
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

import attrs
import orjson
from cyclopts import App, Parameter

from container_runner.agents import KINDS
from container_runner.cli.containers import JsonFlag, print_json
from container_runner.cli.flags import ConfigFlags, RunFlags, effective_from_flags, field_help
from container_runner.cli.options import hidden
from container_runner.cli.text import clean
from container_runner.config.fields import FIELDS, HINTS, OWNERS, defaults
from container_runner.config.protected import PROTECTED
from container_runner.config.tightening import TIGHTENING
from container_runner.config.values import Injection, Mount, PortBinding, Tmpfs
from container_runner.quantities import DAY

HIDDEN = frozenset({"env", "mcp_servers", "host_mcp_servers"})
"""Tables whose values may be secrets: only their keys are printed."""

app = App(name="config")


@app.default
def config(*, flags: RunFlags | None = None, box: ConfigFlags | None = None) -> None:
    """Print the effective configuration, with the source of each value."""
    flags = flags or RunFlags()
    found = effective_from_flags(flags, box)
    if flags.json:
        settings = {
            name: {"value": as_json(name, setting.value), "source": setting.source}
            for name, setting in found.settings.items()
        }
        print_json({"file": str(found.file), "settings": settings}, orjson.OPT_INDENT_2)
        return
    lines = {
        f"# {name}: none" if setting.value is None else f"{name} = {as_toml(name, setting.value)}": setting.source
        for name, setting in found.settings.items()
    }
    width = min(max(map(len, lines)), 48)
    for line, source in lines.items():
        print(f"{line:{width}}  # {clean(source)}")


@app.command
def schema(*, workspace: Annotated[bool, Parameter(negative=())] = False, json: JsonFlag = True) -> None:
    """Print the JSON Schema of the configuration file, for editors.

    Args:
        workspace: The schema of a workspace's .container-runner.toml instead, which has fewer fields.
        json: It is JSON anyway.
    """
    del json
    print_json(json_schema(workspace=workspace), orjson.OPT_INDENT_2)


def as_json(name: str, value: Any) -> Any:
    """A field's value as JSON has it; sizes are bytes and times are seconds."""
    if name in HIDDEN:
        return dict.fromkeys(value, "(not shown)")
    if isinstance(value, tuple):
        return [attrs.asdict(item) if attrs.has(type(item)) else hidden(name, item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def as_toml(name: str, value: Any) -> str:
    """A field's value as TOML has it, spelled as a person would."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return quoted(value)
        case int() if name in _SIZES:
            return quoted(size_text(value))
        case int() | float() if name in ("time_limit", "records_max_age") and value % DAY == 0:
            return quoted(f"{value // DAY:g}d")
        case int() | float():
            return str(value)
        case Mapping():
            shown = as_json(name, value)
            return f"{{{', '.join(f'{quoted(key)} = {quoted(text)}' for key, text in shown.items())}}}"
        case tuple():
            return f"[{', '.join(_item(name, item) for item in value)}]"
        case _:
            raise TypeError(type(value))


def _item(name: str, value: Any) -> str:
    match value:
        case Mount():
            text = f"{value.source}:{value.target}{':ro' if value.read_only else ''}"
            if ":" not in value.source + value.target and text == text.strip():
                return quoted(text)
            access = as_toml(name, value.read_only)
            return f"{{source = {quoted(value.source)}, target = {quoted(value.target)}, read_only = {access}}}"
        case PortBinding():
            address = f"[{value.host_ip}]" if ":" in value.host_ip else value.host_ip
            return quoted(f"{address}:{value.host_port}:{value.container_port}/{value.protocol}")
        case Injection():
            text = f"{value.host} {value.header} {value.secret}"
            if value == Injection.parse(text):
                return quoted(text)
            parts = {"host": value.host, "header": value.header, "secret": value.secret, "allowed": value.allowed}
            return f"{{{', '.join(f'{name} = {as_toml(name, part)}' for name, part in parts.items())}}}"
        case Tmpfs():
            execute = "exec," if value.executable else ""
            return quoted(f"{value.target}:size={size_text(value.size)},{execute}mode={value.mode:o}")
        case _:
            return quoted(hidden(name, value))


def quoted(text: str) -> str:
    """*text* as a TOML string, in which nothing can control a terminal."""
    escaped = json_.dumps(text, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", lambda m: f"\\u{ord(m[0]):04x}", escaped)


def size_text(size: int) -> str:
    """Bytes as "2g", "512m" or "2048"."""
    for unit, power in (("g", 30), ("m", 20), ("k", 10)):
        if size and size % (1 << power) == 0:
            return f"{size >> power}{unit}"
    return str(size)


@functools.cache
def explanations() -> Mapping[str, str]:
    """What each of `FIELDS` means, in full sentences."""
    return {
        "agent_kind": f"Which agent works: {', '.join(KINDS)}.",
        "command": "The command to run in the container instead of an agent. It gets the prompt on stdin.",
        "records": "Whether each run leaves a transcript and a summary in the state folder.",
        **{name: field_help(kind)[field] for name, (kind, field) in OWNERS.items()},
    }


# The schema

_SIZES = ("memory", "disk_limit", "shm_size", "size", "line_limit", "records_max_total", "records_max_run")
_TIMES = ("time_limit", "timeout", "idle_timeout", "result_timeout", "records_max_age")
_SIZE = {"type": ["integer", "string"], "pattern": r"^[0-9]+(\.[0-9]+)?([kmgtKMGT]([iI]?[bB])?|[bB])?$"}
_TIME = {"type": ["number", "string"], "pattern": r"^[0-9]+(\.[0-9]+)?[smhdSMHD]?$"}

_SPECIAL: Mapping[str, dict[str, Any]] = {
    **dict.fromkeys(_SIZES, _SIZE),
    **dict.fromkeys(_TIMES, _TIME),
    "mode": {"type": ["integer", "string"], "pattern": "^[0-7]{3,4}$"},
    "agent_kind": {"enum": [*KINDS]},
    "command": {"type": "string"},
    "records": {"type": "boolean"},
    "unprotected": {"type": "array", "items": {"enum": list(PROTECTED)}},
}
"""Fields that take more, or less, than their type says."""


def json_schema(*, workspace: bool = False) -> dict[str, Any]:
    """The JSON Schema of the operator's file, or of a *workspace*'s."""
    names = [name for name in FIELDS if not workspace or name in (*TIGHTENING, "labels", "tmpfs")]
    help_ = explanations()
    table = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _field(name, HINTS[name], help_[name], defaults()[name]) for name in names},
    }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "container-runner"}
    if workspace:
        described = "What a workspace asks for. It may only tighten what the operator has decided."
        return {**head, "description": described, **table}
    tables = {"type": "object", "additionalProperties": {"$ref": "#/$defs/table"}}
    return {
        **head,
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "defaults": {"description": "For every agent.", "$ref": "#/$defs/table"},
            "agents": {"description": "For one agent each, by its name.", **tables},
            "profiles": {"description": "Chosen by --profile.", **tables},
        },
        "$defs": {"table": table},
    }


def _field(name: str, hint: Any, help_: str, default: Any) -> dict[str, Any]:
    found = {**(_SPECIAL[name] if name in _SPECIAL else _type(hint)), "description": help_}
    if default not in (None, attrs.NOTHING):
        found["default"] = as_json(name, default)
    return found


def _type(hint: Any) -> dict[str, Any]:
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        others = [_type(kind) for kind in kinds if kind is not types.NoneType]  # TOML has no null
        return others[0] if len(others) == 1 else {"anyOf": others}
    if origin is typing.Literal:
        return {"enum": list(kinds)}
    if origin is tuple:
        return {"type": "array", "items": _type(kinds[0])}
    if origin is Mapping:
        return {"type": "object", **({"additionalProperties": {"type": "string"}} if kinds[1] is str else {})}
    if hint in (Injection, Mount, PortBinding, Tmpfs):
        return {"anyOf": [{"type": "string", "description": hint.FORMS}, _object(hint)]}
    return {"type": {str: "string", bool: "boolean", int: "integer", float: "number"}[hint]}


def _object(kind: Any) -> dict[str, Any]:
    hints, help_, fields = typing.get_type_hints(kind), field_help(kind), attrs.fields(kind)
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [field.name for field in fields if field.default is attrs.NOTHING],
        "properties": {
            field.name: _field(field.name, hints[field.name], help_[field.name], field.default) for field in fields
        },
    }
