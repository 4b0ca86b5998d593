"""Where the repository of a folder is, found without git, which would believe more than we do.

What stands in a folder's `.git` may have been written by an agent, in an earlier run on a mounted folder. One that
leads elsewhere counts only if the repository there says in turn that this folder is its own: else what an agent wrote
would send another repository's history into the box.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from posixpath import normpath
from typing import Final

import attrs

from container_runner.errors import WorkspaceError
from container_runner.workspace.repositories import borrowed, common_folder, is_repository, modules, read_line, resolved

LONGEST: Final = 16 * 1024**2

_WORKTREE: Final = re.compile(r'^\s*worktree\s*=\s*"?([^"\n]+?)"?\s*$', re.IGNORECASE | re.MULTILINE)


@attrs.frozen(kw_only=True)
class Repository:
    """A repository of git with a working tree."""

    at: bytes
    """Where its working tree is, relative to the workspace; b"" for the workspace itself."""

    tree: Path
    """Its working tree."""

    folder: Path
    """Its own git folder, with HEAD and index."""

    common: Path
    """The git folder with objects and refs, which worktrees share; else the same."""

    def read(self, name: str, *, shared: bool = True) -> bytes:
        """What a small file in it says; b"" if there is none."""
        return read_some(os.fsencode((self.common if shared else self.folder) / name))


def read_some(path: bytes) -> bytes:
    """The first `LONGEST` bytes of a regular file; b"" if there is none, or a link."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return file.read(LONGEST)
    return b""


def find_repository(tree: Path, *, at: bytes = b"", around: Repository | None = None) -> Repository | None:
    """The repository whose working tree *tree* is, or None.

    Args:
        tree: a real path.
        at: see `Repository.at`.
        around: the repository of the workspace, if *tree* lies in that: its modules are trusted as it is.

    Raises:
        WorkspaceError: it is the workspace's, and its `.git` is a link, or leads to a repository that does not know of
            it, or git would look for the rest of it elsewhere. Below the workspace such a folder is one without git,
            and so is one that borrows objects.
    """
    dot = tree / ".git"
    if dot.is_symlink():
        if around is not None:
            return None
        step = f"Replace it by a file with the line `gitdir: {os.path.realpath(dot)}`."
        raise WorkspaceError(f"{dot} is a link.", next_step=step, path=b".git")
    if dot.is_dir():
        folder = dot
    else:
        said = read_line(dot) or ""
        if not said.startswith("gitdir: "):
            return None
        folder = Path(normpath(tree / said.removeprefix("gitdir: ")))
    common = common_folder(folder)
    if common is None or not is_repository(common) or not (folder / "HEAD").is_file():
        return None
    if around is not None and borrowed(common):
        return None
    found = Repository(at=at, tree=tree, folder=folder, common=common)
    rest = folder / "commondir"
    if os.path.lexists(rest) and resolved(folder / (read_line(rest) or "\0")) != common:
        if around is not None:
            return None
        step = "Look at it, and remove it if nobody has set that up."
        raise WorkspaceError(f"{rest} says that the rest of the repository is elsewhere.", next_step=step, path=b".git")
    if (folder == dot and common == dot) or _knows(found, dot, around):
        return found
    if around is not None:
        return None
    step = f"If it is right, say so with `git --git-dir={folder} config core.worktree {tree}`."
    raise WorkspaceError(f"{dot} leads to a repository that does not know of it.", next_step=step, path=b".git")


def check_objects(repository: Repository, lent: Iterable[str]) -> None:
    """Refuse a repository that borrows objects, or whose submodule does, unless the operator has named from where.

    An agent in an earlier run on a mounted folder may have brought it about, and then the history of any repository of
    the user's would come into the box.

    Args:
        lent: real paths of folders from which the repository itself may borrow.

    Raises:
        WorkspaceError: it borrows from elsewhere.
    """
    for git in (repository.common, *modules(repository.common)):
        for folder in borrowed(git):
            is_own = git == repository.common
            if is_own and any(folder.is_relative_to(name) for name in lent):
                continue
            step = "If you have not set that up, remove objects/info/alternates, or the link there. If you have, type "
            step += f"`git repack -a -d && rm objects/info/alternates` in {git}"
            step += f", or name it with --volume={folder}:{folder}:ro." if is_own else "."
            raise WorkspaceError(f"{git} borrows the objects in {folder}.", next_step=step, path=b".git")


def _knows(found: Repository, dot: Path, around: Repository | None) -> bool:
    """Whether the repository that a file `.git` names has this working tree."""
    folder = found.folder.resolve()
    if found.common not in (folder, folder.parent.parent):
        return False
    if around is not None and around.common in folder.parents:
        return True
    if found.tree in folder.parents:  # "gitdir: ./.bare"
        return True
    if back := read_line(found.folder / "gitdir"):  # a worktree
        return resolved(found.folder / back) == dot
    named = _WORKTREE.search(found.read("config").decode("utf-8", "surrogateescape"))  # a submodule
    return named is not None and Path(normpath(found.folder / named[1])).resolve() == found.tree
