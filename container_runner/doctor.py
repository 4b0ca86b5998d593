"""Whether a run would work on this machine: each thing that it needs as a check, with the line to type if it fails.

Nothing is guessed that can be tried: the checks inside of the box come from a real run, with the very flags, user,
mounts and variables of yours, in which a small script stands where the agent would.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Final, Literal

import attrs

from container_runner import argv
from container_runner.engine import Engine
from container_runner.environment import host_environment
from container_runner.errors import (
    ConfigError,
    ContainerRunnerError,
    EngineNotFoundError,
)
from container_runner.mounts import sessions_folder
from container_runner.options import ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.user import User

__all__ = ["NAMES", "Check", "Status", "examine"]

Status = Literal["ok", "warn", "fail", "skip"]

NAMES: Final = (
    "configuration",
    "credentials",
    "secrets",
    "engine",
    "daemon",
    "versions",
    "image",
    "box",
    "tools",
    "agent",
    "workspace",
    "sessions",
    "network",
    "limits",
)
"""All checks, in the order in which they are made."""

PROBE_TIMEOUT: Final = 60.0
"""Seconds that the script in the box may take, the agent's `--version` included."""


@attrs.frozen(kw_only=True)
class Check:
    """One thing that a run needs, and how it stands with it."""

    name: str
    """One of `NAMES`."""

    status: Status
    """"ok"; "warn": a run works, and you should know this; "fail": a run would fail; "skip": not looked at."""

    found: str
    """What was seen, in a sentence or less. It may hold text of the engine's."""

    fix: str | None = None
    """A line to type, or None where there is nothing to do."""


async def examine(
    prepare: Callable[[], tuple[ContainerRunner, ExecuteOptions]], *, engine: str = "auto"
) -> AsyncGenerator[Check, None]:
    """Make every check there is, one `Check` for each of `NAMES`.

    It changes nothing but what a run changes too: containers of dead owners are removed.

    Args:
        prepare: makes the runner and the options of the run in question; a `ConfigError` of it is a check that failed.
        engine: the engine to look at if *prepare* fails.
    """
    seen: set[str] = set()
    async with contextlib.aclosing(_examine(prepare, engine)) as checks:
        async for check in checks:
            seen.add(check.name)
            yield check
    for name in NAMES:
        if name not in seen:
            yield Check(name=name, status="skip", found="not looked at, because of what failed above")


async def _examine(
    prepare: Callable[[], tuple[ContainerRunner, ExecuteOptions]], wanted: str
) -> AsyncGenerator[Check, None]:
    runner: ContainerRunner | None = None
    usable = False
    try:
        runner, options = prepare()
        wanted = runner.config.engine
        with contextlib.suppress(EngineNotFoundError):  # the engine has a check of its own
            runner.plan(options)
        usable = True
        image = f"image {runner.config.image}, agent {options.agent.name}"
        yield Check(name="configuration", status="ok", found=image)
    except ConfigError as error:
        yield _refused(error, runner)
    if runner is not None:
        yield _credentials(runner)
        yield _secrets(runner.config)
    try:
        found = await Engine.probe(wanted, host_environment())
    except ContainerRunnerError as error:
        yield _without_engine(error)
        return
    yield Check(name="engine", status="ok", found=_described(found))
    try:
        info = await _ask(found, argv.info_argv(found.binary))
        versions = await _ask(found, argv.version_argv(found.binary))
    except ContainerRunnerError as error:
        yield _without_daemon(error, found)
        return
    yield Check(name="daemon", status="ok", found=_daemon(found, info))
    yield _versions(found, info, versions)
    if runner is None:
        yield _limits(found, info, None, {})
        return
    image_check = await _image(found, runner.config)
    yield image_check
    if not usable or image_check.status == "fail":
        yield _limits(found, info, runner.config, {})
        return
    seen, failure = await _look_inside(runner, options)
    if failure is not None:
        check = _failed(failure, found, runner)
        if check.name != image_check.name:
            yield check
    for check in _inside(runner, options, found, seen):
        if failure is None or check.name != _failed(failure, found, runner).name:
            yield check
    yield _limits(found, info, runner.config, seen)


# Before anything is started


def _refused(error: ConfigError, runner: ContainerRunner | None) -> Check:
    name = {"agent.workspace": "workspace", "credentials": "credentials", "state_dir": "sessions"}.get(error.field)
    fix = error.next_step
    if name == "workspace" and runner is not None and Path(str(error.value)).is_dir() and "can write" in error.allowed:
        workspace = Path(str(error.value)).resolve()
        fix = _as_root(f"chown -R {User.of(runner.config, workspace)} {shlex.quote(str(workspace))}")
    elif error.field in ("image", "--image"):
        fix = "container-runner image build && container-runner doctor --image=container-runner/claude"
    return Check(name=name or "configuration", status="fail", found=error.message, fix=fix)


_LOGIN: Final = re.compile(r"(ANTHROPIC|CLAUDE_CODE|AWS|GOOGLE|VERTEX)_\w+")
"""Variables by which claude gets at a model in ways that are not ours to check."""


def _credentials(runner: ContainerRunner) -> Check:
    config, environ = runner.config, host_environment()
    credentials = _command(runner).credentials
    if not credentials.names and credentials.file is None:
        return Check(name="credentials", status="ok", found="the command needs none that we know of")
    if config.credentials == "none":
        return Check(name="credentials", status="ok", found="none are given, as configured")
    by_name = [name for name in credentials.names if environ.get(name)]
    if by_name and config.credentials in ("auto", "env"):
        return Check(name="credentials", status="ok", found=f"{by_name[0]} is set")
    file = Path(credentials.file or os.devnull).expanduser()
    if file.is_file() and config.credentials in ("auto", "file"):
        return Check(name="credentials", status="ok", found=f"the file {file}")
    configured = [name for name in (*config.env, *config.secrets) if _LOGIN.fullmatch(name)]
    if configured:
        return Check(name="credentials", status="ok", found=f"{', '.join(configured)}, as configured")
    login = sessions_folder(runner.state_dir.resolve(), _agent_of(runner)) / ".credentials.json" if _agents else None
    if login is not None and login.is_file():
        return Check(name="credentials", status="ok", found="the agent has logged in itself")
    return Check(
        name="credentials",
        status="fail",
        found=f"neither {' nor '.join(credentials.names)} is set, and there is no login in {file}",
        fix=f"export {credentials.names[0]}=…",
    )
