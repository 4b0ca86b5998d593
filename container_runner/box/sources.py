"""Which paths of the host may be mounted.

Every source is resolved to the path that it really is, because the engines follow symlinks, and is then held against
the places that are never mounted: a source may neither lie inside one of them nor contain one.
"""

from __future__ import annotations

import functools
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from container_runner.config import paths
from container_runner.config.container import ContainerConfig
from container_runner.config.laws import is_line
from container_runner.config.values import ENGINE_SOCKETS
from container_runner.errors import ConfigError
from container_runner.options import Agent

SYSTEM: Final = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var/run",
    "/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/Library", "/System",
)  # fmt: skip
"""Folders of the system. Nothing inside them is mounted, nor anything that contains them."""

PRIVATE: Final = (
    ".aws",
    ".azure",
    ".config",
    ".docker",
    ".gnupg",
    ".kube",
    ".local/share/containers",
    ".netrc",
    ".ssh",
)
"""Files and folders of a home that hold keys, or the engine's own state."""

AGENT_STATE: Final = (".claude", ".claude.json", ".codex", ".gemini")
"""Folders and files of a home that hold an agent's credentials, and its memory of all your projects."""

SHARED: Final = ("/home", "/media", "/mnt", "/opt", "/srv")
"""Folders whose owner is not to be changed."""

FIRST_PERSON: Final = 500
"""The least uid of a person, as macOS counts; Linux begins at 1000."""

_TEMPORARY: Final = stat.S_ISVTX | stat.S_IWOTH
"""The mode of folders in which every user may make files, and may not remove those of others."""

LONGEST_PLACE: Final = 200
"""The longest path of a workspace at its own place. claude shortens the names of its folders beyond that."""

SOCKET_DEPTH: Final = 3
MOST_FOLDERS: Final = 2000
"""The bounds of the look for sockets, which each plan takes."""


def resolve_workspace(agent: Agent) -> Path:
    """The workspace's real path.

    Raises:
        ConfigError: it is no folder, or is one that is everybody's as /tmp is, or a place that is never mounted.
    """
    path = resolve_source(agent.workspace or "", "agent.workspace")
    if not path.is_dir():
        raise ConfigError("agent.workspace", str(agent.workspace), "a folder")
    if path.stat().st_mode & _TEMPORARY == _TEMPORARY:
        allowed = (
            f"a folder of the agent's own, such as a new one in {path}, where other programs have files and sockets"
        )
        raise ConfigError("agent.workspace", str(agent.workspace), allowed)
    return path


def workspace_target(config: ContainerConfig, workspace: Path | None) -> str:
    """Where the workspace is in the container: at /workspace, or where it is on this machine.

    Raises:
        ConfigError: it can not be there.
    """
    if config.workspace_target != "same" or workspace is None:
        return paths.WORKSPACE
    taken = {"/tmp", *(it.target for it in config.volumes), *(it.target for it in config.tmpfs)}  # noqa: S108  a path in the container
    if str(workspace) in taken or contains(Path(paths.ROOT), workspace) or len(str(workspace)) > LONGEST_PLACE:
        allowed = (
            f"a path of at most {LONGEST_PLACE} characters at which nothing else is mounted, with workspace_target"
        )
        raise ConfigError("agent.workspace", str(workspace), f'{allowed} = "same"')
    return str(workspace)


def resolve_source(source: str | Path, field: str) -> Path:
    """The real path of a bind source.

    Raises:
        ConfigError: it is missing, is a socket of an engine, or is one of the places that are never mounted.
    """
    try:
        path = Path(source).expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        told = f"{field} {source}: no such {'folder' if field.endswith('workspace') else 'file or folder'}"
        raise ConfigError(field, str(source), "a path that exists on this machine", told=told) from None
    if not is_line(str(path)):
        raise ConfigError(field, str(source), "a path without control characters")
    if path.name in ENGINE_SOCKETS:
        allowed = "anything but an engine's socket: whoever holds it is root on this machine"
        raise ConfigError(field, str(source), allowed)
    homes = _homes(os.path.expanduser("~"))  # noqa: PTH111  never raises, where a user has no home
    for home in homes:
        if contains(path, home):
            raise ConfigError(field, str(source), f"a folder that is not, and does not contain, the home folder {home}")
    for place in _never_mounted(homes):
        if contains(place, path) or contains(path, place):
            allowed = f"a path apart from {place}, which holds what no agent should see or change"
            raise ConfigError(field, str(source), allowed)
    return path


@functools.cache
def _homes(own: str) -> tuple[Path, ...]:
    """The homes that are never mounted: ours; and if we are root, who could mount them, all that hold keys."""
    us = os.getuid()
    people = (user for user in pwd.getpwall() if user.pw_uid in (0, us) or (us == 0 and user.pw_uid >= FIRST_PERSON))
    others = {Path(user.pw_dir) for user in people} - {Path("/")}
    holding = filter(_holds_keys, sorted(others))
    homes = [home.resolve() for home in (Path(own), *holding) if home.is_absolute()]
    return tuple(dict.fromkeys(home for home in homes if home != Path("/")))


def _holds_keys(home: Path) -> bool:
    try:
        return any((home / name).exists() for name in (*PRIVATE, *AGENT_STATE))
    except PermissionError:  # one that is closed to us may, and the engine may enter it
        return True


@functools.cache  # a hundred system calls; these places do not move while we live
def _never_mounted(homes: tuple[Path, ...]) -> list[Path]:
    places = [Path(place) for place in SYSTEM]
    places += [home / name for home in homes for name in (*PRIVATE, *AGENT_STATE)]
    # Both as they are spelled and as what they are: /etc is /private/etc on macOS.
    return sorted({*places, *(place.resolve() for place in places)} - {Path("/")})


def check_sockets(folder: Path, field: str) -> None:
    """Refuse a folder in which an engine listens.

    Raises:
        ConfigError: it does.
    """
    for path in sockets(folder):
        if path.name in ENGINE_SOCKETS:
            allowed = f"a folder without {path}: whoever holds an engine's socket is root on this machine"
            raise ConfigError(field, str(folder), allowed)


def sockets(folder: Path) -> Iterator[Path]:
    """The sockets in a folder, `SOCKET_DEPTH` folders deep in the first `MOST_FOLDERS`. Links are not followed."""
    level, left = [folder], MOST_FOLDERS
    for _ in range(SOCKET_DEPTH + 1):
        below: list[Path] = []
        for place in level[:left]:
            with suppress(OSError), os.scandir(place) as entries:  # what we may not look at, nobody else of ours may
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        below.append(Path(entry.path))
                    elif not entry.is_file(follow_symlinks=False) and not entry.is_symlink():
                        with suppress(OSError):
                            if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                                yield Path(entry.path)
        left -= len(level)
        level = below if left > 0 else []


def contains(folder: Path, path: Path) -> bool:
    """Whether a path is a folder or lies in it. Both are absolute, without ".."."""
    # As text, because a plan asks this a hundred times.
    return path == folder or str(path).startswith(str(folder).rstrip("/") + "/")
