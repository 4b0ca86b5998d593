"""Where the repositories of a workspace are, and what is in their way, by their files alone.

Git is never asked: it obeys what is in the workspace, and an agent may have written that.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from itertools import islice
from os.path import normpath
from pathlib import Path
from typing import Final, TypeVar

import attrs

from container_runner.config import paths
from container_runner.errors import ConfigError
from container_runner.folders import read_regular

DEPTH: Final = 3
"""How many folders deep repositories in a workspace are looked for."""

MOST_FOLDERS: Final = 2000
MOST_REPOSITORIES: Final = 50
"""The bounds of that look, which each plan takes."""

MOST_INDEX: Final = 256 * 1024 * 1024

T = TypeVar("T")

_PASSED_OVER: Final = frozenset(["node_modules", ".venv", "venv", "__pycache__", ".tox", ".nox"])


@attrs.frozen(kw_only=True)
class Worktree:
    """A workspace that `git worktree add` made: its repository is elsewhere."""

    common: Path
    """The repository, which all its worktrees share."""

    name: str
    """What the repository calls this worktree."""

    target: str
    """Where the repository must be in the container, so that the worktree finds it."""

    link: str
    """Where the worktree's file `.git` must be in the container, so that the repository finds it."""


def find_worktree(workspace: Path, target: str = paths.WORKSPACE) -> Worktree | None:
    """What git needs to work in *workspace*, if that is a worktree of a repository elsewhere.

    The workspace's own file only says where to look: an agent may have written it. It counts if the repository, which
    lies outside, says in turn that this is a worktree of its own.

    Args:
        target: where the workspace is in the container.

    Raises:
        ConfigError: the two do not name each other.
    """
    link = workspace / ".git"
    elsewhere = _read_link(link)
    if elsewhere is None:
        return None
    git = Path(normpath(workspace / elsewhere))
    common = git.parent.parent
    if git.parent.name != "worktrees" or not git.is_dir() or workspace in git.parents:
        return None  # a submodule, a worktree whose repository is gone, or all of it is in the workspace
    back = read_line(git / "gitdir")
    names_us = back is not None and resolved(git / back) == link
    if not names_us or git.resolve() != git or common_folder(git) != common or not is_repository(common):
        allowed = f"a worktree that its repository knows: type `git worktree repair` in {common}, or remove {link}"
        raise ConfigError("agent.workspace", str(workspace), allowed)
    inside = normpath(f"{target}/{elsewhere}") if not elsewhere.startswith("/") else str(git)
    assert back is not None  # noqa: S101  names_us
    return Worktree(
        common=common,
        name=git.name,
        target=str(Path(inside).parent.parent),
        link=normpath(f"{inside}/{back}") if not back.startswith("/") else back,
    )


def git_folder(folder: Path) -> Path | None:
    """The git folder of the repository, worktree or submodule in *folder*, wherever it is said to be."""
    elsewhere = _read_link(folder / ".git")
    if elsewhere is not None:
        return Path(normpath(folder / elsewhere))
    for git in (folder / ".git", folder):
        if not git.is_symlink() and is_repository(git):
            return git
    return None


def nested_repositories(workspace: Path) -> list[tuple[Path, Path]]:
    """The folders of *workspace* that are repositories, bare ones too, `DEPTH` folders deep, each with its git folder.

    The outer ones come first. One whose git folder is outside of the workspace is left out. Links are not followed, nor
    folders of packages looked into.
    """
    found: list[tuple[Path, Path]] = []
    level, left = [workspace], MOST_FOLDERS
    for _ in range(DEPTH):
        level = list(islice((below for folder in level for below in folders(folder)), left))
        left -= len(level)
        for folder in level:
            git = git_folder(folder) if _has(folder, ".git") or _has(folder, "HEAD") else None
            if git is not None and workspace in git.parents and resolved(git) == git and is_repository(git):
                found.append((folder, git))
    return found


def modules(git: Path) -> list[Path]:
    """The git folders of a repository's submodules, and of theirs. A submodule's name may be a path."""
    found: list[Path] = []
    left = [git / "modules"]
    while left and len(found) < MOST_REPOSITORIES:
        folder = left.pop(0)
        if folder.is_symlink():
            continue
        if is_repository(folder):
            found.append(folder)
            left.append(folder / "modules")
        elif len(folder.parts) - len(git.parts) < 20:
            left += folders(folder)
    return found


def lenders(git: Path) -> list[Path]:
    """The git folders of `modules` from which objects may be borrowed, by a line of `alternates` each."""
    return [module for module in modules(git) if not borrowed(module) and "\n" not in str(module)]


def borrowed(git: Path) -> list[Path]:
    """The folders in which a repository reads objects beside its own, as real paths.

    Links among its objects lead there, and `alternates`, there as well. An agent may have written either, and named any
    repository of the user's; what we can not read here counts, for git might.

    Args:
        git: a real path.
    """
    found: dict[Path, None] = {}
    own, left = git / "objects", [git / "objects"]
    while left and len(found) < MOST_REPOSITORIES:
        objects = Path(os.path.realpath(left.pop()))
        if objects in found:
            continue
        if objects != own:
            found[objects] = None
        alternates = objects / "info/alternates"
        lines: list[str] = []
        try:
            with os.scandir(objects) as entries:
                found.update((Path(os.path.realpath(entry)), None) for entry in entries if entry.is_symlink())
            if os.path.lexists(alternates):
                lines = read_regular(alternates).decode("utf-8", "surrogateescape").split("\n")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            found[alternates] = None
        for line in lines:
            if line[:1] == '"' or "\0" in line:  # as git writes what is no plain path
                found[Path(line.replace("\0", ""))] = None
            elif line[:1] not in ("", "#"):
                left.append(objects / line)
    return list(found)


def is_repository(folder: Path) -> bool:
    """Whether git would take it for the folder of a repository."""
    # os.stat and not is_file(), which newer Pythons let say no where one may not look: an agent can take our rights
    # away from what it owns, and must not lose its walls by that.
    try:
        modes = [os.stat(folder / name).st_mode for name in ("HEAD", "objects", "refs")]
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(modes[0]) and stat.S_ISDIR(modes[1]) and stat.S_ISDIR(modes[2])


def objects_elsewhere(git: Path, workspace: Path) -> list[Path]:
    """The folders outside of *workspace* that a repository borrows objects from, as `git clone --shared` and
    `--reference` set it up. The names are absolute ones, or lie beside the repository's own."""
    objects = (common_folder(git) or git) / "objects"
    try:
        lines = read_regular(objects / "info/alternates").decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    named = ((line, Path(normpath(objects / line))) for line in lines if line[:1] not in ("", "#") and "\0" not in line)
    return [path for line, path in named if path.is_dir() and (line[0] == "/" or workspace not in path.parents)]


def enclosing_repository(workspace: Path) -> Path | None:
    """The folder above *workspace* that is a repository, if *workspace* is none."""
    if os.path.lexists(workspace / ".git"):
        return None
    return next((folder for folder in workspace.parents if os.path.lexists(folder / ".git")), None)


def read_index(git: Path, *, sha256: bool = False) -> Iterator[tuple[str, bool]]:
    """The paths that a repository tracks, each with whether it is a gitlink: a repository of its own, into which `git
    status` goes, and whose configuration it obeys there. Whatever is no index says nothing."""
    try:
        data = read_regular(git / "index", longest=MOST_INDEX)
        _, version, count = struct.unpack_from(">4sLL", data)
        at, path = 12, b""
        for _ in range(count if version in (2, 3, 4) else 0):
            (mode,) = struct.unpack_from(">L", data, at + 24)
            start = at + (72 if sha256 else 60)
            (flags,) = struct.unpack_from(">H", data, start)
            start += 4 if flags & 0x4000 else 2
            kept = b""
            if version == 4:
                cut, start = _varint(data, start)
                kept = path[: len(path) - cut]
            end = data.index(0, start)
            path = kept + data[start:end]
            yield os.fsdecode(path), mode == 0o160000
            at = end + 1 if version == 4 else at + ((end - at + 8) & ~7)
    except (OSError, ValueError, IndexError, struct.error):
        return


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number as git packs it, and where it ends."""
    value = data[at] & 127
    while data[at] & 128:
        at += 1
        value = ((value + 1) << 7) | (data[at] & 127)
    return value, at + 1


def read_line(file: Path) -> str | None:
    """The one line of a small regular file, without its end."""
    try:
        text = read_regular(file).decode("utf-8").rstrip("\r\n")
    except (OSError, ValueError):
        return None
    return text if text and "\0" not in text and "\n" not in text else None


def resolved(path: Path) -> Path | None:
    """The real path of what is there; None for nothing."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return None


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, in their order, without links."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        return _absent(error, folder, [])
    return [folder / name for name in names if name != ".git" and name not in _PASSED_OVER]


def _has(folder: Path, name: str) -> bool:
    try:
        os.lstat(f"{folder}/{name}")
    except FileNotFoundError:  # of thousands
        return False
    except OSError as error:
        return _absent(error, folder, False)
    return True


def _absent(error: OSError, folder: Path, nothing: T) -> T:
    """*nothing*, unless the folder is ours and only closed to us: the agent, who is often us, can open it again."""
    if isinstance(error, PermissionError) and folder.lstat().st_uid == os.getuid():
        raise error
    if not isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
        raise error
    return nothing


def common_folder(git: Path) -> Path | None:
    """The repository that a git folder belongs to: itself, or the one of its worktree."""
    real = resolved(git)
    if real is None:
        return None
    shared = read_line(real / "commondir") if real.parent.name == "worktrees" else None
    return real if shared is None else resolved(real / shared)


def _read_link(file: Path) -> str | None:
    """The path in a file `.git`."""
    text = read_line(file)
    return text.removeprefix("gitdir: ") if text is not None and text.startswith("gitdir: ") else None
