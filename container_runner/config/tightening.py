"""What a workspace's own file may say: the agent can write it, so it may only tighten what the others decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs

from container_runner.config.container import ContainerConfig
from container_runner.config.fields import FIELDS, RECORDS, Tables, flag, parse
from container_runner.config.keys import refuse_key
from container_runner.config.laws import NOT_SHOWN, refuse
from container_runner.config.values import Mount, Tmpfs
from container_runner.quantities import GIB, MIB

DEFAULT: Final = "default"
"""The source of a value that nobody set."""

TMPFS_COUNT: Final = 8

TMPFS_PLACES: Final = ("/cache", "/mnt", "/scratch", "/tmp", "/var/cache", "/var/tmp")  # noqa: S108  in the container
"""Where a workspace's file may ask for a tmpfs. Elsewhere it could hide or replace the image's programs."""

TMPFS_SHARE: Final = 4
"""The part of the memory limit that these may hold together: a quarter."""

LABEL_COUNT: Final = 32

_SECRETIVE: Final = frozenset(
    {"env", "secrets", "optional_secrets", "inject", "extra_args", "mcp_servers", "host_mcp_servers", "args"}
)
"""Fields whose refused value may hold a secret."""


@attrs.frozen
class Setting:
    """A value, and who set it."""

    value: Any
    """As the field of `ContainerConfig`, `Agent` or `ExecuteOptions` holds it."""

    source: str
    """"default", "/path/config.toml [defaults]", "environment CONTAINER_RUNNER_MEMORY", "--memory", or the path of the
    workspace's file; several of them, divided by commas, where a table was put together from more than one."""


@attrs.frozen
class _Rule:
    """When one value is at least as tight as another, and the words for it."""

    holds: Callable[[Any, Any], bool]
    words: str


def _at_most_history(value: Any, now: Any) -> bool:
    return bool(now == "all" or (value != "all" and value <= now))


def _some_mounts_of(value: tuple[Mount, ...], now: tuple[Mount, ...]) -> bool:
    read_only = {(mount.source, mount.target): mount.read_only for mount in now}
    return all(mount.read_only >= read_only.get((mount.source, mount.target), 2) for mount in value)


def _narrower_network(value: str, now: str) -> bool:
    return value == "none" or (value, now) in {("gateway", "bridge"), ("gateway", "host"), ("bridge", "host")}


_MOST: Final = _Rule(lambda value, now: now is None or (value is not None and value <= now), "at most {now}")
_SUBSET: Final = _Rule(lambda value, now: set(value) <= set(now), "some of {now}")
_TRUE: Final = _Rule(lambda value, now: value or not now, "true")

TIGHTENING: Final[Mapping[str, _Rule]] = {
    "ephemeral": _TRUE,
    "network": _Rule(_narrower_network, '"none", or "gateway" for "bridge"'),
    "allow_hosts": _SUBSET,
    "allow_addresses": _SUBSET,
    "inject": _SUBSET,
    "memory": _MOST,
    "cpu_shares": _MOST,
    "cpus": _MOST,
    "cpu_period": _Rule(lambda value, now: value >= now, "at least {now}"),
    "cpu_quota": _MOST,
    "pids_limit": _MOST,
    "max_containers": _MOST,
    "pool": _MOST,
    "volumes": _Rule(_some_mounts_of, "some of {now}, or the same with read_only"),
    "workspace_mode": _Rule(
        lambda value, now: value == "ro" or (value, now) == ("carried", "rw"), '"ro", or "carried" for "rw"'
    ),
    "workspace_target": _Rule(lambda value, _: value == "/workspace", '"/workspace"'),
    "carry": _Rule(lambda value, _: value == "stream", '"stream"'),
    "carry_ignored": _SUBSET,
    "history": _Rule(_at_most_history, "at most {now}"),
    "unprotected": _SUBSET,
    "protected": _Rule(lambda *_: True, "any"),  # what it names is added
    "credentials": _Rule(lambda value, _: value == "none", '"none"'),
    "secrets": _SUBSET,
    "optional_secrets": _SUBSET,
    "ports": _SUBSET,
    "read_only": _TRUE,
    "pull": _Rule(lambda value, _: value == "never", '"never"'),
    "disk_limit": _MOST,
    "shm_size": _MOST,
    "add_host": _SUBSET,
    "devices": _SUBSET,
    "time_limit": _MOST,
}
"""What a workspace's file may set beside `tmpfs` and `labels`. The value that stands already is always allowed."""

_IMPLIED: Final[Mapping[str, int]] = {"cpu_period": 100_000, "shm_size": 64 * MIB}
"""What the engines take where nothing is said."""

_REASONS: Final[Mapping[str, str]] = {
    "image": "another image is another box",
    "engine": "it is a program on this machine",
    "user": "another user may own more",
    "env": "variables can lead programs and logins elsewhere",
    "ulimits": "the engine's own limits may be lower",
    "gpus": "it opens devices of this machine",
    "extra_args": "they can undo all the rest",
    "host_mcp_servers": "they are programs of this machine",
    **dict.fromkeys(("records", *RECORDS), "records are how you see what it did"),
}


def tightened(
    table: Mapping[str, Any], box: ContainerConfig, settings: Mapping[str, Setting], source: str, operator: Path
) -> Iterator[tuple[str, Any]]:
    """The values of the workspace's file, each at least as tight as in *box*."""
    memory = box.memory
    # The tmpfs folders are held against the memory limit, so that one comes first.
    for name in sorted(table, key=lambda name: (name != "memory", name)):
        given = table[name]
        shown = NOT_SHOWN if name in _SECRETIVE else given
        where = f"set it in {operator} or with {flag(name)}"
        if name in attrs.fields_dict(Tables):
            refuse(name, NOT_SHOWN, f"{name} in {operator}; here the fields stand at the top", source=source)
        if name not in FIELDS:
            refuse_key(name, [*TIGHTENING, "labels", "tmpfs"], source=source)
        if name not in TIGHTENING and name not in ("labels", "tmpfs"):
            reason = _REASONS.get(name, "it would give its own orders")
            allowed = f"nothing here, because the agent can write this file and {reason}; {where}"
            refuse(name, shown, allowed, source=source)
        value, now = parse(name, given, source), getattr(box, name)
        now = _IMPLIED.get(name) if now is None else now
        if name == "tmpfs":
            value = _more_tmpfs(value, box, memory // TMPFS_SHARE, where, source)
        elif name == "labels":
            value = _more_labels(value, box, where, source)
        elif name == "protected":
            value = tuple(dict.fromkeys((*box.protected, *value)))
        elif value != now and not TIGHTENING[name].holds(value, now):
            said = settings[name].source if name in settings else DEFAULT
            words = TIGHTENING[name].words.format(now=_short(now))
            allowed = (
                f"{words} ({said}), because the agent can write this file: it may only tighten. To loosen it, {where}"
            )
            refuse(name, shown, allowed, source=source)
        if name == "memory":
            memory = value
        yield name, value


def _more_tmpfs(
    value: tuple[Tmpfs, ...], box: ContainerConfig, most: int, where: str, source: str
) -> tuple[Tmpfs, ...]:
    """The box's own tmpfs folders, with those of the workspace's file beside them."""

    def law(index: int, allowed: str) -> None:
        refuse(f"tmpfs[{index}]", value[index].target, f"{allowed}; otherwise {where}", source=source)

    ours = {tmpfs.target for tmpfs in box.tmpfs}
    for index, tmpfs in enumerate(value):
        if tmpfs.executable:
            law(index, "one without exec")
        if not f"{tmpfs.target}/".startswith(tuple(f"{place}/" for place in TMPFS_PLACES)):
            law(index, f"one below {', '.join(TMPFS_PLACES)}")
        if tmpfs.target in ours:
            law(index, "one where there is none yet")
        if any(f"{tmpfs.target}/".startswith(f"{volume.target}/") for volume in box.volumes):
            law(index, "one that is not in a volume, where it would leave a folder on this machine")
        if index >= TMPFS_COUNT:
            law(index, f"at most {TMPFS_COUNT} of them")
        if sum(folder.size for folder in value[: index + 1]) > most:
            law(index, f"at most {_short(most)} in all, a quarter of the memory limit")
    return (*box.tmpfs, *value)


def _more_labels(value: Mapping[str, str], box: ContainerConfig, where: str, source: str) -> Mapping[str, str]:
    """The box's own labels, with those of the workspace's file beside them."""
    for key in value:
        # Other programs on the machine (proxies, schedulers, updaters) obey labels, all below a name with a dot.
        allowed = None
        if "." in key:
            allowed = "keys without a dot: those with one may be orders to other programs on this machine"
        elif box.labels.get(key, value[key]) != value[key]:
            allowed = "keys that have no other value yet"
        elif len(value) > LABEL_COUNT:
            allowed = f"at most {LABEL_COUNT} of them"
        if allowed:
            refuse(f"labels.{key}", value[key], f"{allowed}; otherwise {where}", source=source)
    return MappingProxyType({**box.labels, **value})


def _short(value: object) -> str:
    """A value in an error's words."""
    if isinstance(value, tuple):
        return f"[{', '.join(str(_called(item)) for item in value)}]"
    if isinstance(value, int) and value >= MIB and value % MIB == 0:
        return f"{value // GIB}g" if value % GIB == 0 else f"{value // MIB}m"
    return str(value)


def _called(item: object) -> object:
    """The part of a value by which people know it."""
    return next((getattr(item, name) for name in ("target", "host_port", "host") if hasattr(item, name)), item)
