"""Which source of configuration may say what, and how they become one.

From the weakest to the strongest: the operator's file ([defaults], then [agents.NAME], then [profiles.NAME]), the
environment, the flags. What remains unset gets its default last, so that a key in one source never resets another key.

At the end comes the workspace's own `.container-runner.toml`. The agent can write that file, so it may only tighten:
each of its values is held against what the others have decided, and one that would loosen anything is refused.
"""

from __future__ import annotations

import functools
import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import attrs

from container_runner.config.container import ContainerConfig
from container_runner.config.laws import NOT_SHOWN, instead, refuse
from container_runner.config.limits import RecordLimits
from container_runner.config.paths import MARK
from container_runner.config.protected import WORKSPACE_FILE
from container_runner.config.values import GIB, MIB, Mount, Tmpfs, parse_duration, parse_size
from container_runner.errors import ConfigError
from container_runner.folders import LONGEST, read_regular
from container_runner.options import Agent, ExecuteOptions

PREFIX: Final = "CONTAINER_RUNNER_"
"""How a variable's name begins whose rest is a field in capitals."""

DEFAULT: Final = "default"
"""The source of a value that nobody set."""

TABLES: Final = ("defaults", "agents", "profiles")
"""What stands at the top of the operator's file."""

TMPFS_COUNT: Final = 8
TMPFS_PLACES: Final = ("/cache", "/mnt", "/scratch", "/tmp", "/var/cache", "/var/tmp")  # noqa: S108  in the container
"""Where a workspace's file may ask for a tmpfs. Elsewhere it could hide or replace the image's programs."""

TMPFS_SHARE: Final = 4
"""The part of the memory limit that these may hold together: a quarter."""

LABEL_COUNT: Final = 32

_BOX: Final = tuple(field.name for field in attrs.fields(ContainerConfig))
_AGENT: Final = tuple(field.name for field in attrs.fields(Agent) if field.name not in ("name", "workspace"))
_REQUEST: Final = tuple(
    field.name
    for field in attrs.fields(ExecuteOptions)
    if field.name not in ("prompt", "agent", "resume", "fork", "session_id")
)

_RECORDS: Final[Mapping[str, str]] = {f"records_{field.name}": field.name for field in attrs.fields(RecordLimits)}
"""The fields of `RecordLimits`, by what they are called here."""

FIELDS: Final = (*_BOX, "command", *_AGENT, *_REQUEST, "records", *_RECORDS)
"""Everything that can be configured: the box, the command that stands for claude, the agent, the request, the records
of runs."""

_HINTS: Final[Mapping[str, Any]] = {
    "command": str,
    **typing.get_type_hints(ContainerConfig),
    **{name: hint for name, hint in typing.get_type_hints(Agent).items() if name in _AGENT},
    **{name: hint for name, hint in typing.get_type_hints(ExecuteOptions).items() if name in _REQUEST},
    "records": bool,
    **{name: typing.get_type_hints(RecordLimits)[field] for name, field in _RECORDS.items()},
}

_SECRETIVE: Final = frozenset({"env", "secrets", "extra_args", "mcp_servers", "args"})
"""Fields whose refused value may hold a secret."""


@attrs.frozen
class Setting:
    """A value, and who set it."""

    value: Any
    """As the field of `ContainerConfig`, `Agent` or `ExecuteOptions` holds it."""

    source: str
    """"default", "/path/config.toml [defaults]", "environment CONTAINER_RUNNER_MEMORY", "--memory", or the path of the
    workspace's file; several of them, divided by commas, where a table was put together from more than one."""


@attrs.frozen(kw_only=True)
class Effective:
    """What all sources together say."""

    settings: Mapping[str, Setting]
    """Every one of `FIELDS`, in their order. `image` is None if nobody named one."""

    file: Path
    """The operator's file, whether it is there or not."""

    @property
    def config(self) -> ContainerConfig:
        """The box.

        Raises:
            ConfigError: nobody named an image.
        """
        if self.settings["image"].value is None:
            allowed = f"the name of an image, as --image=my/claude, or image = ... below [defaults] in {self.file}"
            raise ConfigError("--image", None, allowed)
        return ContainerConfig(**{name: self.settings[name].value for name in _BOX})

    @property
    def command(self) -> str | None:
        """The command that runs instead of claude."""
        value: str | None = self.settings["command"].value
        return value

    @property
    def agent(self) -> dict[str, Any]:
        """The arguments for `Agent` beside its name and workspace."""
        return {name: self.settings[name].value for name in _AGENT}

    @property
    def request(self) -> dict[str, Any]:
        """The arguments for `ExecuteOptions` that are not about this one prompt."""
        return {name: self.settings[name].value for name in _REQUEST}

    @property
    def records(self) -> RecordLimits | Literal[False]:
        """How much runs leave to read, as `ContainerRunner` takes it."""
        if not self.settings["records"].value:
            return False
        return RecordLimits(**{field: self.settings[name].value for name, field in _RECORDS.items()})


def default_file() -> Path:
    """Where the operator's file is if none is named."""
    import platformdirs

    return platformdirs.user_config_path("container-runner", appauthor=False) / "config.toml"


def effective(
    *,
    agent: str,
    workspace: Path,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
    profile: str | None = None,
) -> Effective:
    """Put the sources together.

    Args:
        agent: whose table below [agents] counts.
        workspace: the folder whose `.container-runner.toml` may tighten the result.
        flags: the fields that the command line set. Text becomes a number or a boolean where the field wants one.
        environ: the variables to look through. None: those of this process.
        file: the operator's file. None: `default_file()`, if it exists.
        profile: whose table below [profiles] counts. None: no one's.

    Raises:
        ConfigError: a source can not be read, or says what it may not; `source` tells which one.
    """
    operator = default_file() if file is None else file.expanduser().absolute()
    tiers = [
        *_operator_tiers(operator, agent, profile, workspace, is_required=file is not None),
        *_environment_tiers(os.environ if environ is None else environ),
        *((flag(name), {name: from_text(name, value)}) for name, value in (flags or {}).items()),
    ]
    settings: dict[str, Setting] = {}
    for source, table in tiers:
        for name, given in table.items():
            value, origin = parse(name, given, source), source
            if isinstance(value, Mapping) and name in settings:
                value = MappingProxyType({**settings[name].value, **value})
                origin = f"{settings[name].source}, {source}"
            settings[name] = Setting(value, origin)
    box = _checked(settings)
    local = workspace.expanduser().resolve() / WORKSPACE_FILE
    table = _read_workspace_file(local)
    for name, value in _tightened(table, box, settings, str(local), operator):
        settings[name] = Setting(value, str(local))
    _checked(settings, str(local) if table else None)
    return Effective(
        settings={name: settings.get(name, Setting(defaults()[name], DEFAULT)) for name in FIELDS}, file=operator
    )


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
    if name in _BOX:
        return getattr(ContainerConfig(**{"image": "image", name: value}), name)
    if name in _AGENT:
        return getattr(Agent(**{"name": "agent", name: value}), name)
    if name == "command":
        return value if isinstance(value, str) and value.strip() else refuse(name, value, "a command, as in a shell")
    if name == "records":
        return value if isinstance(value, bool) else refuse(name, value, "true or false")
    if name in _RECORDS:
        return getattr(RecordLimits(**{_RECORDS[name]: value}), _RECORDS[name])
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
    kinds = typing.get_args(_HINTS[name]) or (_HINTS[name],)
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
        *((name, box) for name in _BOX),
        *((name, agent) for name in _AGENT),
        *((name, request) for name in _REQUEST),
    )
    return {
        **{name: getattr(holder, name) for name, holder in holders},
        "image": None,
        "command": None,
        "records": True,
        **{name: getattr(RecordLimits(), field) for name, field in _RECORDS.items()},
    }


def _checked(settings: Mapping[str, Setting], last: str | None = None) -> ContainerConfig:
    """The box of *settings*, with an image that stands for none. A clash of fields is laid on *last*."""
    given = {name: setting.value for name, setting in settings.items() if name in _BOX}
    try:
        return ContainerConfig(**{"image": "image", **given})
    except ConfigError as error:
        setting = settings.get(re.split(r"[.\[]", error.field)[0])
        source = last or (setting.source if setting else None)
        raise (error.with_source(source) if source else error) from None


# The operator's sources


def _operator_tiers(
    file: Path, agent: str, profile: str | None, workspace: Path, *, is_required: bool
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if file.resolve().is_relative_to(workspace.expanduser().resolve()) and (is_required or file.exists()):
        refuse("--config", str(file), "a file outside of the workspace, because the agent can write what is in it")
    content: Mapping[str, Any] = {}
    if is_required or file.exists():
        content = _toml(str(file), lambda: file.read_bytes(), "--config" if is_required else "file")
    for key in content:
        if key not in TABLES:
            hint = (
                f"{key} below [defaults], [agents.NAME] or [profiles.NAME]" if key in FIELDS else _unknown(key, TABLES)
            )
            refuse(_spelled(key), NOT_SHOWN, hint, source=str(file))
    named = [("defaults", content.get("defaults", {}), f"{file} [defaults]")]
    for kind, wanted in (("agents", agent), ("profiles", profile)):
        tables = _table(content.get(kind, {}), kind, str(file))
        for name, table in tables.items():  # a mistake in the table of another agent is one too
            _known(_table(table, f"{kind}.{_spelled(name)}", str(file)), f"{file} [{kind}.{_spelled(name)}]")
        if wanted is not None and wanted in tables:
            named.append((f"{kind}.{wanted}", tables[wanted], f"{file} [{kind}.{wanted}]"))
        elif kind == "profiles" and wanted is not None:
            refuse(
                "--profile", wanted, f"one of those in {file}: {', '.join(map(_spelled, tables)) or 'there are none'}"
            )
    for name, table, source in named:
        yield source, _known(_table(table, name, str(file)), source)


def _environment_tiers(environ: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for variable in sorted(environ):
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or variable == MARK or not environ[variable]:
            continue
        if name not in FIELDS:
            refuse(variable, NOT_SHOWN, _unknown(name, FIELDS, PREFIX), source="environment")
        if typing.get_origin(_HINTS[name]) in (tuple, Mapping):
            refuse(
                variable,
                NOT_SHOWN,
                f"{name} in a file, or {flag(name)}: a variable holds one value",
                source="environment",
            )
        yield f"environment {variable}", {name: from_text(name, environ[variable])}


def _toml(source: str, read: Callable[[], bytes], name: str = "file") -> Mapping[str, Any]:
    import tomllib

    try:
        return tomllib.loads(read().decode("utf-8"))
    except OSError as error:
        refuse(name, source, f"a file that can be read ({error.strerror})")
    except (ValueError, RecursionError) as error:  # also a number or a nesting that Python does not take
        refuse("syntax", str(error), "TOML, see https://toml.io", source=source)


def _table(value: object, name: str, source: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        refuse(name, NOT_SHOWN, f"a table, [{name}]", source=source)
    return value


def _known(table: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    for key in table:
        if key not in FIELDS:
            refuse(_spelled(key), NOT_SHOWN, _unknown(key, FIELDS), source=source)
    return table


def _spelled(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", key) else "a key"


def flag(name: str) -> str:
    """How the command line spells a field."""
    return f"--{name.replace('_', '-')}"


# Keys that people bring from elsewhere

ELSEWHERE: Final[Mapping[str, str]] = {
    "add_dirs": "volumes",
    "allow_tools": "allowed_tools",
    "base_image": "image",
    "binds": "volumes",
    "cap_add": "extra_args, if it must be: all capabilities are dropped",
    "cap_drop": "nothing: all capabilities are dropped anyway",
    "cli_path": "command",
    "continue_conversation": "--resume on the command line",
    "cpu": "cpus",
    "cwd": "--workspace on the command line",
    "denied_tools": "disallowed_tools",
    "docker": "its keys in [defaults], [agents.NAME] or [profiles.NAME]: there is no table of its own",
    "enabled": "nothing: an agent always runs in a container here",
    "entrypoint": "command",
    "environment": "env, or secrets for names alone",
    "env_file": "secrets, which takes names and reads the values from your environment",
    "fork_session": "--fork on the command line",
    "host_config": "the field for what it sets (network, shm_size, ulimits, devices, add_host, gpus), or extra_args",
    "init": "nothing: there is always one",
    "max_concurrent": "--jobs of `container-runner batch`",
    "mem_limit": "memory",
    "memory_swap": "memory: swap is off, so it is the limit of both",
    "message_limit": "max_turns",
    "mount": "volumes",
    "mounts": "volumes",
    "name": "--agent on the command line, or the NAME in [agents.NAME]",
    "net": "network",
    "network_mode": "network",
    "plugins": "plugin_dirs",
    "privileged": "extra_args, if it must be: it undoes the box",
    "prompt": "the prompt on the command line",
    "publish": "ports",
    "restart": "nothing: a container lives for its runs",
    "resume": "--resume on the command line",
    "rm": "ephemeral",
    "runtime": "command, or nothing for claude",
    "sandbox": "nothing: an agent always runs in a container here",
    "security_opt": "extra_args, if it must be: no-new-privileges is always set",
    "system_prompt_append": "append_system_prompt",
    "volume": "volumes",
    "working_directory": "--workspace on the command line",
    "working_limit": "timeout",
    "workspace": "--workspace on the command line",
}
"""What other tools' keys are called here."""


def _unknown(key: str, known: Iterable[str], prefix: str = "") -> str:
    """What would have been accepted instead of an unknown key, or of a variable: its name without the *prefix*."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).replace("-", "_").lower()
    if snake in ELSEWHERE:
        return f"{ELSEWHERE[snake]} ({_spelled(key)} is another tool's name for it)"
    if snake != key and snake in known:
        return f"{snake}, as it is called here"
    return instead(snake, known, spell=(lambda name: f"{prefix}{name.upper()}") if prefix else str)


# The workspace's file


def _read_workspace_file(file: Path) -> Mapping[str, Any]:
    """Its content; empty if there is none. The agent may have put anything there, so nothing is followed."""
    try:
        content = read_regular(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        allowed = f"a regular file that can be read, of at most {LONGEST} bytes, and no symbolic link"
        refuse("file", error.strerror, allowed, source=str(file))
    return _toml(str(file), lambda: content)


@attrs.frozen
class _Rule:
    """When one value is at least as tight as another, and the words for it."""

    holds: Callable[[Any, Any], bool]
    words: str


def _at_most(value: Any, now: Any) -> bool:
    return now is None or (value is not None and value <= now)


def _at_least(value: Any, now: Any) -> bool:
    return bool(value >= now)


def _some_of(value: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return set(value) <= set(now)


def _some_mounts_of(value: tuple[Mount, ...], now: tuple[Mount, ...]) -> bool:
    read_only = {(mount.source, mount.target): mount.read_only for mount in now}
    return all(mount.read_only >= read_only.get((mount.source, mount.target), 2) for mount in value)


_MOST: Final = _Rule(_at_most, "at most {now}")
_SUBSET: Final = _Rule(_some_of, "some of {now}")

TIGHTENING: Final[Mapping[str, _Rule]] = {
    "ephemeral": _Rule(lambda value, now: value or not now, "true"),
    "network": _Rule(lambda value, now: value == "none" or (value, now) == ("bridge", "host"), '"none"'),
    "memory": _MOST,
    "cpu_shares": _MOST,
    "cpus": _MOST,
    "cpu_period": _Rule(_at_least, "at least {now}"),
    "cpu_quota": _MOST,
    "pids_limit": _MOST,
    "max_containers": _MOST,
    "pool": _MOST,
    "volumes": _Rule(_some_mounts_of, "some of {now}, or the same with read_only"),
    "workspace_mode": _Rule(lambda value, _: value == "ro", '"ro"'),
    "unprotected": _SUBSET,
    "credentials": _Rule(lambda value, _: value == "none", '"none"'),
    "secrets": _SUBSET,
    "ports": _SUBSET,
    "read_only": _Rule(lambda value, now: value or not now, "true"),
    "pull": _Rule(lambda value, _: value == "never", '"never"'),
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
    **dict.fromkeys(("records", *_RECORDS), "records are how you see what it did"),
}


def _tightened(
    table: Mapping[str, Any], box: ContainerConfig, settings: Mapping[str, Setting], source: str, operator: Path
) -> Iterator[tuple[str, Any]]:
    """The values of the workspace's file, each at least as tight as in *box*."""
    memory = box.memory
    # The tmpfs folders are held against the memory limit, so that one comes first.
    for name in sorted(table, key=lambda name: (name != "memory", name)):
        given = table[name]
        shown = NOT_SHOWN if name in _SECRETIVE else given
        where = f"set it in {operator} or with {flag(name)}"
        if name in TABLES:
            refuse(name, NOT_SHOWN, f"{name} in {operator}; here the fields stand at the top", source=source)
        if name not in FIELDS:
            refuse(_spelled(name), NOT_SHOWN, _unknown(name, [*TIGHTENING, "labels", "tmpfs"]), source=source)
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

    ours = {tmpfs.target: tmpfs for tmpfs in box.tmpfs}
    for index, tmpfs in enumerate(value):
        if tmpfs.executable:
            law(index, "one without exec")
        if (
            not tmpfs.target.startswith(tuple(f"{place}/" for place in TMPFS_PLACES))
            and tmpfs.target not in TMPFS_PLACES
        ):
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
        return f"[{', '.join(str(getattr(item, 'target', getattr(item, 'host_port', item))) for item in value)}]"
    if isinstance(value, int) and value >= MIB and value % MIB == 0:
        return f"{value // GIB}g" if value % GIB == 0 else f"{value // MIB}m"
    return str(value)
