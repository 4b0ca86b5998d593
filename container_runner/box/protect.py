"""Places in a workspace that the host acts on later: git's hooks, an agent's settings, files that a shell reads.

An agent that could write them would run its commands on the host, outside of its box, the next time that somebody
commits, opens an editor, or starts an agent there. So they are bound over themselves, read-only. A mount point can
neither be renamed nor removed from inside (EBUSY), and so that nobody can move the folder that holds one away and put
another in its place, each folder above it is bound over itself as well.

What does not exist is left alone, because a mount would leave an empty file on the host; `missing` tells what to look
for afterwards. Only what a repository may always have is made: see `RESERVED`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from os.path import normpath
from pathlib import Path
from typing import Final, Literal

import attrs

from container_runner.box import gitconfig
from container_runner.config import paths
from container_runner.config.laws import is_line
from container_runner.config.protected import PROTECTED
from container_runner.config.values import Mount
from container_runner.errors import ConfigError
from container_runner.workspace import repositories
from container_runner.workspace.repositories import Worktree, is_repository, read_line, resolved

RESERVED: Final[Mapping[str, str | None]] = {
    "commondir": "./\n",  # not ".", in which libgit2 finds no repository
    "config.worktree": "",
    "hooks": None,
}
"""What is made in a repository that lacks it, so that there is something to protect: a file with this text, or an
empty folder. `commondir` says that the rest of the repository is where it is, and is made only if it is asked for: git
and libgit2 work with it as before, but claude takes the repository for one that it can make no worktrees of."""

COMMONDIR: Final = ".git/commondir"

WORKTREES: Final = ".claude/worktrees"
"""Where claude makes the worktrees of its sub-agents: writable, and made, in a `.claude` that is not."""

_MOST_LINKS: Final = 1000
_MOST_WORKTREES: Final = 100


def protect(
    workspace: Path,
    unprotected: Collection[str],
    protected: Iterable[str] = (),
    *,
    target: str = paths.WORKSPACE,
) -> list[Mount]:
    """The binds that protect a writable workspace, or another writable folder.

    Args:
        workspace: its real path.
        target: where it is in the container.
        unprotected: names in `PROTECTED` that the agent may write nevertheless.
        protected: more paths that it may not write.

    Raises:
        ConfigError: a symbolic link stands in a protected place. A link can be replaced, whatever is mounted.
    """
    kept = [name for name in PROTECTED if not {name, name.partition("/")[0]} & {*unprotected}]
    walls = _Walls(workspace, target, target)
    for name in kept:
        if not name.startswith(".git/") and (kind := _listed(workspace, name)):
            if name != ".git" or kind == "file":
                walls.add([(workspace / name, True)])
            if name == ".claude" and kind == "folder" and _kind(workspace / WORKTREES) != "file":
                walls.add([(workspace / WORKTREES, False)])
    protected = [name.rstrip("/") for name in protected]
    for name in protected:
        if name != COMMONDIR and _listed(workspace, name):
            walls.add([(workspace / name, True)])
    if ".git" in kept:
        git = workspace / ".git" if (workspace / ".git").is_dir() else repositories.git_folder(workspace)
        if git is not None and (git == workspace or workspace in git.parents):
            walls.add(_repository(git, workspace, kept, walls, reserve=COMMONDIR in protected, strict=True))
        for root, nested in repositories.nested_repositories(workspace)[: repositories.MOST_REPOSITORIES]:
            if ".git/modules" in kept or git is None or git / "modules" not in nested.parents:
                walls.add(_repository(nested, root, kept, walls, reserve=COMMONDIR in protected))
    return walls.mounts()


def way_to(path: Path, workspace: Path, *, beside: Iterable[Mount], target: str = paths.WORKSPACE) -> list[Mount]:
    """The folders between *workspace* and *path*, outermost first, each bound over itself so that it stays there.

    Args:
        beside: mounts that are there already. What they hold, or close, is left out.
        target: where the workspace is in the container.
    """
    walls = _Walls(workspace, target, target)
    before = {mount.source: mount for mount in beside}
    walls.found.update(before)
    walls.add([(path, False)])
    return [way for source, way in walls.found.items() if source not in before and source != str(path)]


def missing(workspace: Path) -> frozenset[str]:
    """The protected paths that are not there, and which an agent may therefore make."""
    made = {".git/config.worktree", ".git/hooks"} if is_repository(workspace / ".git") else frozenset()
    absent = frozenset(name for name in PROTECTED if name not in made and not os.path.lexists(workspace / name))
    return absent | {COMMONDIR} if is_harmless(workspace / COMMONDIR) else absent


def is_harmless(commondir: Path) -> bool:
    """Whether a `commondir` says that all of the repository is where it is, as ours does."""
    return read_line(commondir) == "./"


def worktree_mounts(
    worktree: Worktree,
    workspace: Path,
    unprotected: Collection[str],
    protected: Collection[str] = (),
    *,
    read_only: bool,
    target: str = paths.WORKSPACE,
) -> list[Mount]:
    """The binds that make git work in a worktree: its repository, and its own `.git` where the repository expects it.

    The other worktrees are read-only, because to git in the container they look as if they were gone.
    """
    common = worktree.common
    found = [Mount(str(common), worktree.target, read_only)]
    if worktree.link != f"{target}/.git":
        found.append(Mount(str(workspace / ".git"), worktree.link, read_only=True))
    if read_only or ".git" in unprotected:
        return found
    kept = [name for name in PROTECTED if name not in unprotected]
    own, walls = common / "worktrees" / worktree.name, _Walls(common, worktree.target, target)
    others, reserve = [name for name in kept if name != ".git/modules"], COMMONDIR in protected
    walls.add(_repository(common, None, others, walls, own=own, reserve=reserve, strict=True))
    if ".git/modules" in kept and _kind(common / "modules", ".git/modules"):
        walls.add([(common / "modules", True)])
    walls.add(_worktree(own))
    for module in repositories.modules(own) if ".git/modules" in kept else []:
        walls.add(_repository(module, None, kept, walls, reserve=reserve))
    return found + walls.mounts()


def make_reserved(mounts: Iterable[Mount]) -> bool:
    """Make what is in `RESERVED` where *mounts* protects it and it is not there, and tell whether there was any."""
    made = False
    for mount in mounts:
        path = Path(mount.source)
        opened = not mount.read_only and mount.source.endswith(f"/{WORKTREES}")
        if not _is_reserved(path) and (not opened or os.path.lexists(path)):
            continue
        text = None if opened else RESERVED[path.name]
        if text is None:
            path.mkdir(exist_ok=True)
        else:
            with path.open("x") as file:
                file.write(text)
        made = True
        if os.getuid() == 0:
            owner = path.parent.stat()
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    return made


@attrs.frozen
class _Walls:
    """The binds of what is protected in one mounted folder."""

    base: Path
    """The folder on the host."""

    target: str
    """Where it is in the container."""

    workspace: str
    """Where the workspace is in there."""

    found: dict[str, Mount] = attrs.field(factory=dict)
    """The binds by their sources."""

    def add(self, places: Iterable[tuple[Path, bool]]) -> None:
        """Add *places*, each with whether it is read-only, and what keeps them from being moved away."""
        for path, read_only in places:
            if path == self.base or not is_line(str(path)):  # the latter is no name that git or a person gives
                continue
            closed = self._closed()
            for folder in reversed(path.relative_to(self.base).parents[:-1]):
                way = self._over_itself(self.base / folder, False)
                if not way.target.startswith(closed):
                    self.found.setdefault(way.source, way)
            if str(path) not in self.found or read_only:
                self.found[str(path)] = self._over_itself(path, read_only)
            if read_only and path.is_dir():
                linked = (file for file in _linked(path) if self.base in file.parents and path not in file.parents)
                self.add((file, True) for file in linked)

    def mounts(self) -> list[Mount]:
        """All of them, without those that another one closes."""
        closed, opened = self._closed(), f"{self.workspace}/{WORKTREES}"
        return [
            mount
            for mount in self.found.values()
            if mount.read_only or mount.target == opened or not mount.target.startswith(closed)
        ]

    def inside(self, path: Path) -> str:
        """Where a path of the host is in the container."""
        return f"{self.target}/{path.relative_to(self.base)}"

    def _closed(self) -> tuple[str, ...]:
        return tuple(f"{mount.target}/" for mount in self.found.values() if mount.read_only)

    def _over_itself(self, path: Path, read_only: bool) -> Mount:
        return Mount(str(path), self.inside(path), read_only)


def _repository(
    git: Path,
    root: Path | None,
    kept: Collection[str],
    walls: _Walls,
    *,
    own: Path | None = None,
    reserve: bool = False,
    strict: bool = False,
) -> Iterator[tuple[Path, bool]]:
    """The folder of a repository, and what is read-only in it.

    Args:
        root: the folder with its files, if it has one.
        own: a worktree of it that is left out.
        reserve: whether a `commondir` is made.
        strict: whether a link in a protected place is refused; else it is left alone.
    """
    yield git, False
    for name in ("commondir", "config", "config.worktree", "hooks"):
        listed = f".git/{name}"
        if listed not in kept:
            continue
        is_made = _is_reserved(git / name) and (reserve or listed != COMMONDIR)
        if is_made or _kind(git / name, listed if strict else None):
            yield git / name, True
    for key, value in gitconfig.read(git / "config"):
        path = None
        if key == "core.hookspath" and root is not None and ".git/hooks" in kept:
            path = Path(normpath(root / value))
        elif key in ("include.path", f"includeif.{key[10:-5]}.path") and ".git/config" in kept:
            path = Path(normpath(git / value))
        if path is None or walls.base not in path.parents or path in (git, *git.parents):
            continue
        if resolved(path) == path and _kind(path):
            yield path, True
    for name in ("modules", "worktrees"):
        if f".git/{name}" in kept and _kind(git / name, f".git/{name}" if strict else None) == "folder":
            if name == "worktrees":
                yield from _worktrees(git, walls, own)
            else:
                for module in repositories.modules(git):
                    yield from _repository(module, None, kept, walls, reserve=reserve)


def _worktrees(git: Path, walls: _Walls, own: Path | None) -> Iterator[tuple[Path, bool]]:
    """The worktrees of a repository. One whose files are not in the container is read-only, because to git in there it
    looks as if it were gone; one whose files are nowhere but there was made in a container, and is left to it."""
    folders = repositories.folders(git / "worktrees")
    if len(folders) > _MOST_WORKTREES:
        yield git / "worktrees", True
    for folder in folders[:_MOST_WORKTREES]:
        link = read_line(folder / "gitdir") or ""
        if folder == own:
            continue
        if not normpath(f"{walls.inside(folder)}/{link}" if link[:1] != "/" else link).startswith(
            f"{walls.workspace}/"
        ):
            yield folder, True
        elif os.path.lexists(folder / link):
            yield from _worktree(folder)


def _worktree(own: Path) -> Iterator[tuple[Path, bool]]:
    """The folder of a worktree that is worked in, and what is read-only in it."""
    yield own, False
    yield from ((own / name, True) for name in ("commondir", "config.worktree", "gitdir") if _kind(own / name, name))


def _is_reserved(path: Path) -> bool:
    """Whether *path* is to be made."""
    if path.name not in RESERVED or os.path.lexists(path) or not is_repository(path.parent):
        return False
    # Only where this is set does git read it.
    switch = ("extensions.worktreeconfig", "true")
    return path.name != "config.worktree" or switch in gitconfig.read(path.parent / "config")


def _linked(folder: Path) -> Iterator[Path]:
    """The files that links in *folder* lead to: a hook is often a link to a script of the project."""
    with os.scandir(folder) as entries:
        for _, entry in zip(range(_MOST_LINKS), entries, strict=False):
            if entry.is_symlink() and (file := resolved(Path(entry.path))) and file.is_file():
                yield file


def _listed(workspace: Path, name: str) -> Literal["file", "folder"] | None:
    """What is there by a name in `PROTECTED`. No folder on the way may be a link either."""
    ways = reversed((workspace / name).relative_to(workspace).parents[:-1])
    return _kind(workspace / name, name) if all(_kind(workspace / way, name) == "folder" for way in ways) else None


def _kind(path: Path, name: str | None = None) -> Literal["file", "folder"] | None:
    """What is there; None for nothing.

    Raises:
        ConfigError: it is a link, or anything else, and *name*, as it is listed or called, was given; else it is
            nothing.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    if name is None:
        return None
    listed = name if name in PROTECTED else f".git/{path.name}"
    way = f'unprotected = ["{listed}"]' if name in PROTECTED or ".git" in path.parts else "another list in protected"
    allowed = (
        f"a file or a folder, because a link can be replaced, whatever is mounted, and {path} is one (or is special). "
        f"Replace it by what it leads to, or let the agent write it with {way}"
    )
    raise ConfigError("agent.workspace", str(path), allowed)
