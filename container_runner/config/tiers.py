"""Which source of configuration may say what, and how they become one.

From the weakest to the strongest: the image that was built last, the operator's file ([defaults], then [agents.NAME],
then [profiles.NAME]), the environment, the flags. What remains unset gets its default last, so that a key in one source
never resets another key.

At the end comes the workspace's own `.container-runner.toml`, which may only tighten what the others have decided.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import attrs

from container_runner.config import fields
from container_runner.config.container import ContainerConfig
from container_runner.config.converter import parse_toml, structured
from container_runner.config.fields import FIELDS, Tables, flag
from container_runner.config.keys import refuse_key, spelled
from container_runner.config.laws import NOT_SHOWN, refuse
from container_runner.config.limits import RecordLimits
from container_runner.config.paths import MARK
from container_runner.config.protected import WORKSPACE_FILE
from container_runner.config.tightening import DEFAULT, Setting, tightened
from container_runner.errors import ConfigError
from container_runner.folders import LONGEST, expanded, read_regular

PREFIX: Final = "CONTAINER_RUNNER_"
"""How a variable's name begins whose rest is a field in capitals."""


BUILT: Final = "built-image"
"""The file beside the operator's that names the image with claude which was built last; each other agent has one with
its name at the end. Every other source wins over it."""


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
        return ContainerConfig(**{name: self.settings[name].value for name in fields.BOX})

    @property
    def agent_kind(self) -> str:
        """Which agent runs."""
        return str(self.settings["agent_kind"].value)

    @property
    def command(self) -> str | None:
        """The command that runs instead of an agent."""
        value: str | None = self.settings["command"].value
        return value

    @property
    def agent(self) -> dict[str, Any]:
        """The arguments for `Agent` beside its name and workspace."""
        return {name: self.settings[name].value for name in fields.AGENT}

    @property
    def request(self) -> dict[str, Any]:
        """The arguments for `ExecuteOptions` that are not about this one prompt."""
        return {name: self.settings[name].value for name in fields.REQUEST}

    @property
    def records(self) -> RecordLimits | Literal[False]:
        """How much runs leave to read, as `ContainerRunner` takes it."""
        if not self.settings["records"].value:
            return False
        return RecordLimits(**{field: self.settings[name].value for name, field in fields.RECORDS.items()})


NO_HOME: Final = "the path of a folder of yours, for /etc/passwd names none either"


def default_file() -> Path:
    """Where the operator's file is if none is named.

    Raises:
        ConfigError: this user has no home.
    """
    import platformdirs

    try:
        return platformdirs.user_config_path("container-runner", appauthor=False) / "config.toml"
    except RuntimeError:
        raise ConfigError("HOME", None, NO_HOME) from None


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
    operator = default_file() if file is None else expanded(file, "config").absolute()
    tiers = [
        *_operator_tiers(operator, agent, profile, workspace, typed=file),
        *_environment_tiers(os.environ if environ is None else environ),
        *((flag(name), {name: fields.from_text(name, value)}) for name, value in (flags or {}).items()),
    ]
    settings: dict[str, Setting] = {}
    for source, table in tiers:
        for name, given in table.items():
            value, origin = fields.parse(name, given, source), source
            if isinstance(value, Mapping) and name in settings:
                value = MappingProxyType({**settings[name].value, **value})
                origin = f"{settings[name].source}, {source}"
            settings[name] = Setting(value, origin)
    if "image" not in settings:
        kind = settings["agent_kind"].value if "agent_kind" in settings else fields.defaults()["agent_kind"]
        settings |= _built(_built_file(operator, kind), workspace)
    box = _checked(settings)
    local = expanded(workspace, "agent.workspace").resolve() / WORKSPACE_FILE
    table = _read_workspace_file(local)
    for name, value in tightened(table, box, settings, str(local), operator):
        settings[name] = Setting(value, str(local))
    _checked(settings, str(local) if table else None)
    return Effective(
        settings={name: settings.get(name, Setting(fields.defaults()[name], DEFAULT)) for name in FIELDS},
        file=operator,
    )


def remember_built(image: str, file: Path | None = None, *, kind: str = "claude") -> None:
    """Make an image the default.

    Args:
        file: the operator's file. None: `default_file()`.
        kind: the agent that is in it, and for which it is the default.

    Raises:
        OSError: it can not be written down.
    """
    built = _built_file(default_file() if file is None else file.expanduser().absolute(), kind)
    built.parent.mkdir(parents=True, exist_ok=True)
    built.write_text(f"{image}\n")


def _built_file(operator: Path, kind: str) -> Path:
    """Where the image with an agent of this kind is named."""
    return operator.with_name(BUILT if kind == "claude" else f"{BUILT}-{re.sub(r'[^a-z0-9]', '', kind)}")


def _built(built: Path, workspace: Path) -> dict[str, Setting]:
    if built.is_relative_to(workspace.expanduser().resolve()):
        return {}  # the agent can write it
    try:
        image = read_regular(built).decode("utf-8", "replace").strip()
    except OSError:
        return {}
    return {"image": Setting(fields.parse("image", image, str(built)), str(built))}


def _checked(settings: Mapping[str, Setting], last: str | None = None) -> ContainerConfig:
    """The box of *settings*, with an image that stands for none. A clash of fields is laid on *last*."""
    given = {name: setting.value for name, setting in settings.items() if name in fields.BOX}
    try:
        return ContainerConfig(**{"image": "image", **given})
    except ConfigError as error:
        setting = settings.get(re.split(r"[.\[]", error.field)[0])
        source = last or (setting.source if setting else None)
        raise (error.called(error.field, source=source) if source else error) from None


def _operator_tiers(
    file: Path, agent: str, profile: str | None, workspace: Path, *, typed: Path | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    content: Mapping[str, Any] = {}
    if typed is not None or file.exists():
        if file.resolve().is_relative_to(expanded(workspace, "agent.workspace").resolve()):
            refuse(
                "--config",
                str(typed or file),
                "a file outside of the workspace, because the agent can write what is in it",
            )
        try:
            content = parse_toml(file.read_bytes(), str(file))
        except OSError as error:
            name, shown = ("file", file) if typed is None else ("--config", typed)
            told = f"{name} {shown}: {(error.strerror or 'it can not be read').lower()}"
            refuse(name, str(shown), "a file that can be read", told=told)
    for key in content:
        if key in FIELDS:
            places = "below [defaults], [agents.NAME] or [profiles.NAME]"
            refuse(key, NOT_SHOWN, places, source=str(file), told=f"{key} stands {places}, and not at the top")
    said = structured(Tables, content, source=str(file)) if content else Tables()
    named = [(f"{file} [defaults]", said.defaults)]
    for kind, tables, wanted in (("agents", said.agents, agent), ("profiles", said.profiles, profile)):
        for name, table in tables.items():  # a mistake in the table of another agent is one too
            _known(table, f"{file} [{kind}.{spelled(name)}]")
        if wanted is not None and wanted in tables:
            named.append((f"{file} [{kind}.{wanted}]", tables[wanted]))
        elif kind == "profiles" and wanted is not None:
            there = ", ".join(map(spelled, tables)) or "there are none"
            refuse("--profile", wanted, f"one of those in {file}: {there}")
    for source, table in named:
        yield source, _known(table, source)


def _environment_tiers(environ: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for variable in sorted(environ):
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or variable == MARK or not environ[variable]:
            continue
        if name not in FIELDS:
            refuse_key(name, FIELDS, prefix=PREFIX, source="environment")
        if typing.get_origin(fields.HINTS[name]) in (tuple, Mapping):
            allowed = f"{name} in a file, or {flag(name)}: a variable holds one value"
            refuse(variable, NOT_SHOWN, allowed, source="environment")
        yield f"environment {variable}", {name: fields.from_text(name, environ[variable])}


def line_of(file: str, table: str, key: str) -> str:
    """The number of the line on which a TOML file sets a *key* of a table; "" if it can not be told."""
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return ""
    here = ""
    for number, line in enumerate(lines, 1):
        if head := re.match(r"\s*\[+\s*([\w.-]+)", line):
            here = head[1]
            if not table and here.partition(".")[0] == key:
                return str(number)
        if here == table and re.match(rf"\s*{re.escape(key)}\s*[.=]", line):
            return str(number)
        if here == f"{table}.{key}":
            return str(number)
    return ""


def _known(table: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    for key in table:
        if key not in FIELDS:
            refuse_key(key, FIELDS, source=source)
    return table


def _read_workspace_file(file: Path) -> Mapping[str, Any]:
    """Its content; empty if there is none. The agent may have put anything there, so nothing is followed."""
    try:
        content = read_regular(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        allowed = f"a regular file that can be read, of at most {LONGEST} bytes, and no symbolic link"
        refuse("file", error.strerror, allowed, source=str(file))
    return parse_toml(content, str(file))
