"""Places in a workspace that the host acts on later: git's hooks, an agent's settings, files that a shell reads.

An agent that could write them would run its commands on the host, outside of its box, the next time that somebody
commits, opens an editor, or starts an agent there. So they are bound over themselves, read-only. A mount point can
neither be renamed nor removed from inside (EBUSY), and so that nobody can move the folder that holds one away and put
another in its place, each folder above it is bound over itself as well.

What does not exist is left alone, because a mount would leave an empty file on the host; `missing` tells what to look
for afterwards. Only an empty `hooks` folder is made, which every repository has anyway.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from posixpath import normpath
from typing import Final, Literal

import attrs

from container_runner.config import paths
from container_runner.config.protected import GIT, PROTECTED
from container_runner.config.values import Mount
from container_runner.errors import ConfigError
from container_runner.folders import read_regular

_MOST_LINKS: Final = 1000


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


def protect(workspace: Path, unprotected: Collection[str]) -> list[Mount]:
    """The binds that protect a writable workspace.

    Args:
        workspace: its real path.
        unprotected: names in `PROTECTED` that the agent may write nevertheless.

    Raises:
        ConfigError: a symbolic link stands in a protected place. A link can be replaced, whatever is mounted.
    """
    kept = [name for name in PROTECTED if not {name, name.partition("/")[0]} & {*unprotected}]
    found: dict[str, Mount] = {}
    for name in kept:
        if name.startswith(".git/"):
            continue
        kind = _kind(workspace / name, name)
        if name == ".git" and kind == "folder":
            _protect(found, workspace, _repository(workspace / name, ".git", kept))
        elif kind is not None:
            _protect(found, workspace, [(workspace / name, True)])
            if name == ".git" and (repository := _repository_inside(workspace)):
                _protect(found, workspace, _repository(repository, str(repository.relative_to(workspace)), kept))
    closed = _inside(found.values())
    return [mount for mount in found.values() if mount.read_only or not mount.target.startswith(closed)]


def way_to(path: Path, workspace: Path, *, beside: Iterable[Mount]) -> list[Mount]:
    """The folders between *workspace* and *path*, outermost first, each bound over itself so that it stays there.

    Args:
        beside: mounts that are there already. What they hold, or close, is left out.
    """
    beside = tuple(beside)
    there, closed = {mount.target for mount in beside}, _inside(beside)
    between = reversed(path.relative_to(workspace).parents[:-1])
    ways = (_over_itself(workspace / folder, workspace, False) for folder in between)
    return [way for way in ways if way.target not in there and not way.target.startswith(closed)]


def missing(workspace: Path) -> frozenset[str]:
    """The protected paths that are not there, and which an agent may therefore make."""
    return frozenset(name for name in PROTECTED if not os.path.lexists(workspace / name))


def find_worktree(workspace: Path) -> Worktree | None:
    """What git needs to work in *workspace*, if that is a worktree of a repository elsewhere.

    The workspace's own file only says where to look: an agent may have written it. It counts if the repository, which
    lies outside, says in turn that this is a worktree of its own.

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
    back = _read(git / "gitdir")
    names_us = back is not None and _resolved(git / back) == link
    if not names_us or git.resolve() != git or _common(git) != common or not _is_repository(common):
        allowed = f"a worktree that its repository knows: type `git worktree repair` in {common}, or remove {link}"
        raise ConfigError("agent.workspace", str(workspace), allowed)
    inside = normpath(f"{paths.WORKSPACE}/{elsewhere}") if not elsewhere.startswith("/") else str(git)
    assert back is not None  # noqa: S101  names_us
    return Worktree(
        common=common,
        name=git.name,
        target=str(Path(inside).parent.parent),
        link=normpath(f"{inside}/{back}") if not back.startswith("/") else back,
    )


def worktree_mounts(
    worktree: Worktree, workspace: Path, unprotected: Collection[str], *, read_only: bool
) -> list[Mount]:
    """The binds that make git work in a worktree: its repository, and its own `.git` where the repository expects it.

    The other worktrees are read-only, because to git in the container they look as if they were gone.
    """
    common, target = worktree.common, worktree.target
    found = [Mount(str(common), target, read_only)]
    if worktree.link != f"{paths.WORKSPACE}/.git":
        found.append(Mount(str(workspace / ".git"), worktree.link, read_only=True))
    if read_only or ".git" in unprotected:
        return found
    own = common / "worktrees" / worktree.name
    places = [
        *_repository(common, str(common), [f".git/{name}" for name in GIT if f".git/{name}" not in unprotected]),
        (own, False),
        *((own / name, True) for name in ("commondir", "config.worktree", "gitdir") if _kind(own / name, name)),
    ]
    found += (Mount(str(path), f"{target}/{path.relative_to(common)}", only) for path, only in places if path != common)
    return found


def make_hooks(mounts: Iterable[Mount]) -> bool:
    """Make the empty `hooks` folders that *mounts* protects and that are not there; tell whether there were any."""
    made = False
    for mount in mounts:
        hooks = Path(mount.source)
        if mount.read_only and hooks.name == "hooks" and _is_repository(hooks.parent) and not hooks.is_dir():
            hooks.mkdir(exist_ok=True)
            made = True
            if os.getuid() == 0:
                owner = hooks.parent.stat()
                os.chown(hooks, owner.st_uid, owner.st_gid, follow_symlinks=False)
    return made


def _protect(found: dict[str, Mount], workspace: Path, places: Iterable[tuple[Path, bool]]) -> None:
    """Add *places*, each with whether it is read-only, and what keeps it from being moved or written another way."""
    for path, read_only in places:
        for way in way_to(path, workspace, beside=found.values()):
            found[way.source] = way
        if str(path) not in found or read_only:
            found[str(path)] = _over_itself(path, workspace, read_only)
        if read_only and path.is_dir():
            linked = (file for file in _linked(path) if workspace in file.parents and path not in file.parents)
            _protect(found, workspace, ((file, True) for file in linked))


def _inside(mounts: Iterable[Mount]) -> tuple[str, ...]:
    """How the paths begin that lie in a read-only one of *mounts*."""
    return tuple(f"{mount.target}/" for mount in mounts if mount.read_only)


def _over_itself(path: Path, workspace: Path, read_only: bool) -> Mount:
    return Mount(str(path), f"{paths.WORKSPACE}/{path.relative_to(workspace)}", read_only)


def _repository(git: Path, shown: str, kept: Collection[str]) -> Iterator[tuple[Path, bool]]:
    """The folder of a repository, and what is read-only in it."""
    yield git, False
    for name in GIT:
        if f".git/{name}" not in kept:
            continue
        if _kind(git / name, f"{shown}/{name}") or (name == "hooks" and _is_repository(git)):
            yield git / name, True


def _linked(folder: Path) -> Iterator[Path]:
    """The files that links in *folder* lead to: a hook is often a link to a script of the project."""
    with os.scandir(folder) as entries:
        for _, entry in zip(range(_MOST_LINKS), entries, strict=False):
            if entry.is_symlink() and (file := _resolved(Path(entry.path))) and file.is_file():
                yield file


def _kind(path: Path, name: str) -> Literal["file", "folder"] | None:
    """What is there; None for nothing. Raises ConfigError for a link, or anything else."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    listed = name if name in PROTECTED else f".git/{path.name}"
    allowed = (
        f"a file or a folder, because a link can be replaced, whatever is mounted, and {path} is one (or is special). "
        f'Replace it by what it leads to, or let the agent write it with unprotected = ["{listed}"]'
    )
    raise ConfigError("agent.workspace", str(path), allowed)


def _is_repository(folder: Path) -> bool:
    # os.stat and not is_file(), which newer Pythons let say no where one may not look: an agent can take our rights
    # away from what it owns, and must not lose its walls by that.
    try:
        modes = [os.stat(folder / name).st_mode for name in ("HEAD", "objects", "refs")]  # noqa: PTH116  Path.stat would do the same with more words
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(modes[0]) and stat.S_ISDIR(modes[1]) and stat.S_ISDIR(modes[2])


def _common(git: Path) -> Path | None:
    """The repository that a git folder belongs to: itself, or the one of its worktree."""
    real = _resolved(git)
    if real is None:
        return None
    shared = _read(real / "commondir") if real.parent.name == "worktrees" else None
    return real if shared is None else _resolved(real / shared)


def _repository_inside(workspace: Path) -> Path | None:
    """The repository that a file `.git` names, if it lies in the workspace as well, as in "gitdir: ./.bare"."""
    elsewhere = _read_link(workspace / ".git")
    if elsewhere is None:
        return None
    git = Path(normpath(workspace / elsewhere))
    return git if workspace in git.parents and _resolved(git) == git and _is_repository(git) else None


def _read_link(file: Path) -> str | None:
    """The path in a file `.git`."""
    text = _read(file)
    return text.removeprefix("gitdir: ") if text is not None and text.startswith("gitdir: ") else None


def _read(file: Path) -> str | None:
    """The one line of a small regular file, without its end."""
    try:
        text = read_regular(file).decode("utf-8").rstrip("\r\n")
    except (OSError, ValueError):
        return None
    return text if text and "\0" not in text and "\n" not in text else None


def _resolved(path: Path) -> Path | None:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return None
