"""What a person should know before an agent works on a mounted workspace: what of git will not go as on the host, and
what else is in there."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

import attrs

from container_runner.agents.runtime import CommandLineRuntime, Credentials
from container_runner.box import gitconfig, sources
from container_runner.box.login import read_login
from container_runner.box.protect import is_harmless
from container_runner.box.sources import resolve_workspace
from container_runner.config.container import ContainerConfig
from container_runner.config.protected import PROTECTED
from container_runner.errors import ConfigError
from container_runner.options import Agent, ExecuteOptions
from container_runner.workspace import repositories

LOGIN = re.compile(r"(ANTHROPIC|CLAUDE_CODE|AWS|GOOGLE|VERTEX|OPENAI|GEMINI)_\w+")
"""Variables by which an agent gets at a model in ways that are not ours to check."""

SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS|(API|ACCESS|AUTH|PRIVATE)_?KEY)$", re.IGNORECASE)
"""How the names of variables end that most likely hold a secret."""

MOST_NAMES = 5
"""How many names a hint tells."""


def hints(workspace: Path, unprotected: Collection[str] = (), *, read_only: bool = False) -> Iterator[str]:
    """The hints, each a sentence or two with the flag to type.

    Args:
        workspace: its real path.
        unprotected: what the agent may write of `PROTECTED`.
        read_only: whether it can only read.

    Raises:
        OSError: something in it can not be looked at.
    """
    if found := [str(path.relative_to(workspace)) for path in sources.sockets(workspace)]:
        yield (f"Sockets in the workspace: {_some(found)}. The agent can speak to who listens there without a network.")
    top = repositories.enclosing_repository(workspace)
    git = repositories.git_folder(workspace)
    if top is not None and git is None:
        yield f"Git finds no repository in the container: it is above the workspace. --workspace={top} gives all of it."
    elif git is not None and not git.is_relative_to(workspace) and repositories.find_worktree(workspace) is None:
        where = f" --workspace={top} gives all of it." if (top := _above(workspace)) else ""
        yield f"Git finds no repository in the container: it is in {git}, outside of the workspace.{where}"
    if read_only:
        return
    nested = repositories.nested_repositories(workspace)
    if len(nested) > repositories.MOST_REPOSITORIES:
        first = nested[repositories.MOST_REPOSITORIES][0].relative_to(workspace)
        yield f"Of {len(nested)} repositories in folders those from {first} on have hooks that the agent can write."
    if git is not None and (names := _tracked(git, {*PROTECTED} - {*unprotected})):
        flags = " ".join(f"--unprotected={name}" for name in names[:MOST_NAMES])
        yield (
            f"Tracked files are read-only for the agent: {_some(names)}. A checkout, merge or "
            f"reset that changes them ends half-way. {flags} lets it write them."
        )


def hints_for(agent: Agent, config: ContainerConfig) -> list[str]:
    """The hints for an agent's runs. A workspace that can not be used has none: the run says better what is wrong."""
    if agent.workspace is None:
        return []
    try:
        workspace = resolve_workspace(agent)
        return [*hints(workspace, config.unprotected, read_only=config.workspace_mode != "rw")]
    except (ConfigError, OSError):
        return []


def login_hints(credentials: Credentials, config: ContainerConfig, environ: Mapping[str, str]) -> Iterator[str]:
    """That an agent gets nothing to log in with, if so. No value is looked at."""
    if not credentials.names or config.credentials == "none":
        return
    by_name = credentials.names if config.credentials != "file" else ()
    given = [
        *config.env,
        *(name for name in (*config.secrets, *config.optional_secrets, *by_name) if environ.get(name)),
    ]
    if any(name in credentials.names or LOGIN.fullmatch(name) for name in given):
        return
    file = credentials.file
    if config.credentials != "env" and file and read_login(Path(os.path.expanduser(file))):  # noqa: PTH111  never raises
        return
    yield f"No login: {no_login(credentials)}. Type: export {credentials.names[0]}=YOUR-KEY"


def no_login(credentials: Credentials) -> str:
    """What is not there of what an agent logs in with."""
    names, file = credentials.names, credentials.file
    unset = f"neither {' nor '.join(names)} is set" if names[1:] else f"{names[0]} is not set"
    return f"{unset}, and there is no login in {file}" if file else unset


def address_hints(
    runtime: CommandLineRuntime, options: ExecuteOptions, config: ContainerConfig, environ: Mapping[str, str]
) -> Iterator[str]:
    """That the key for an API of the caller's own goes to the usual one, because only the key is passed on."""
    if options.agent.base_url is not None or config.credentials == "none":
        return
    own = "http://own.invalid"
    try:
        led = runtime.command(attrs.evolve(options, agent=attrs.evolve(options.agent, base_url=own)), contained=True)
    except ConfigError:  # it takes none
        return
    given = {*config.env, *config.secrets, *config.optional_secrets}
    for name in (name for name, value in led.env.items() if value == own):
        if environ.get(name) and name not in given:
            yield f'{name} is set here, but not in the box: the agent asks the usual API. Add --base-url="${name}"'


def box_hints(config: ContainerConfig) -> Iterator[str]:
    """What may surprise of the box itself: a secret that is taken for none."""
    if found := sorted(name for name in config.env if SECRET.search(name) and config.env[name]):
        flags = " ".join(f"--secret={name}" for name in found[:MOST_NAMES])
        yield f"The value of {_some(found)} is taken for no secret: it stays in transcripts. {flags} passes on yours."


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def gitlinks(workspace: Path) -> frozenset[str]:
    """The paths that the workspace's repository takes for repositories of their own: `git status` goes into each, and
    obeys the configuration that it finds there."""
    git = repositories.git_folder(workspace)
    return frozenset() if git is None else frozenset(path for path, is_link in _index(git) if is_link)


def git_files(workspace: Path) -> Mapping[str, tuple[int, int]]:
    """The files that say what git runs, in each repository of the workspace and in the one that it is a worktree of,
    with what changes when they do. Their paths are relative to the workspace, if they are in it."""
    own = repositories.git_folder(workspace)
    common = None if own is None else repositories.common_folder(own)
    facts = {}
    for git in [
        *([] if common is None else [common]),
        *(git for _, git in repositories.nested_repositories(workspace)),
    ]:
        for file in (git / name for name in ("commondir", "config", "config.worktree", "hooks")):
            with suppress(OSError):
                seen = file.lstat()
                if not is_harmless(file):
                    shown = file.relative_to(workspace) if file.is_relative_to(workspace) else file
                    facts[str(shown)] = (seen.st_ino, seen.st_ctime_ns)
    return facts


def _tracked(git: Path, names: AbstractSet[str]) -> list[str]:
    """Which of *names*, files or folders at the top, have tracked files."""
    found: set[str] = set()
    for path, _ in _index(git):
        found |= {path.partition("/")[0], path} & names
    return sorted(found)


def _index(git: Path) -> Iterator[tuple[str, bool]]:
    settings = dict(gitconfig.read((repositories.common_folder(git) or git) / "config"))
    return repositories.read_index(git, sha256=settings.get("extensions.objectformat", "").lower() == "sha256")


def _above(workspace: Path) -> Path | None:
    """The repository's folder that a submodule is in."""
    return next((folder for folder in workspace.parents if (folder / ".git").exists()), None)
