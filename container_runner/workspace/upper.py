"""What a box has written over a folder, read on this machine: only that has to be looked at to know what has changed.

The kernel keeps it in the upper folder of an overlay, which is ours. `Upper` tells of it as OUT tells of a box, a
manifest and then tar, so all of it goes the same way from there, through the same checks.

An agent has made what lies in there, and may still be at it. So each folder is opened from the top, name by name, and
no link is followed; a file is opened only if it is one, and without waiting; nothing is changed, but that what its
owner has made unreadable is made readable. What the kernel itself marks there, nobody in the box can write:

- a whiteout, a device 0/0: what is below it by that name is deleted;
- a folder that is opaque: nothing of what is below it shows through.

Where it may have left marks that are not understood here, or that we may not read, the box is asked.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import anyio.to_thread

from container_runner.errors import WorkspaceError
from container_runner.workspace.manifest import NAMES_LIMIT
from container_runner.workspace.tar import CHUNK, END, TOO_MUCH, member, padding

LONGEST: Final = 4000
"""The longest path that is looked into."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_QUIET: Final = frozenset(["index", "objects"])
"""What git writes in a repository without anything being committed."""

_LETTERS: Final = {
    stat.S_IFREG: b"f",
    stat.S_IFLNK: b"l",
    stat.S_IFDIR: b"d",
    stat.S_IFIFO: b"p",
    stat.S_IFSOCK: b"s",
    stat.S_IFCHR: b"c",
    stat.S_IFBLK: b"b",
}


class UnclearError(Exception):
    """What an overlay has written can not be told from its upper folder alone."""


class Upper:
    """The upper folder of an overlay, in the place of a `Pipe` from OUT. Make one with `Upper.open`.

    Args:
        marks: how the names of the kernel's own attributes begin there; see `marks_of`.
    """

    def __init__(self, top: int, marks: str) -> None:
        self._top = top
        self._marks = marks
        self._open: tuple[bytes, int] | None = None
        """The folder that is held open, for the next file is mostly in the same."""
        self._is_merged: dict[bytes, bool | None] = {}
        """For each entry: whether it is a folder through which what is below shows; None for a whiteout."""
        self._shows: dict[bytes, bool | None] = {b"": None}
        self._answers: deque[Iterator[bytes]] = deque([self._manifest()])

    @classmethod
    @contextmanager
    def open(cls, folder: str, marks: str) -> Iterator[Self]:
        """Hold the folder open for the length of a block.

        Raises:
            OSError: it can not be opened.
        """
        top = os.open(folder, _FOLDER)
        self = cls(top, marks)
        try:
            yield self
        finally:
            self._let_go()
            os.close(top)

    # As a pipe.

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Raises UnclearError if something is there that is not understood."""
        while self._answers:
            chunk = await anyio.to_thread.run_sync(next, self._answers[0], None)
            if chunk is not None:
                return chunk
            self._answers.popleft()
        raise StopAsyncIteration

    def send(self, data: bytes) -> None:
        """Ask for some files, as OUT is asked for them."""
        self._answers.append(self._archive(data.partition(b"\n")[2].split(b"\0")[:-1]))

    # What is not there any more.

    def hides(self, path: bytes) -> bool:
        """Whether a path of the folder below does not show through. Ask when the manifest was read."""
        shows = self._shows_in(path.rpartition(b"/")[0])
        return path in self._is_merged if shows is None else not shows

    def whiteouts(self) -> Iterator[bytes]:
        """The paths that were deleted, without what was in them."""
        return (path for path, is_merged in self._is_merged.items() if is_merged is None)

    def _shows_in(self, folder: bytes) -> bool | None:
        """Whether all that is below shows through in a folder, or nothing; None if it depends."""
        if folder in self._shows:
            return self._shows[folder]
        shows: bool | None = None
        end = -1
        while shows is None and end < len(folder):
            end = folder.find(b"/", end + 1) % (len(folder) + 1)
            at = folder[:end]
            if at not in self._is_merged:
                shows = True
            elif not self._is_merged[at]:
                shows = False
        self._shows[folder] = shows
        return shows

    # How it is read. All of this is in a thread.

    def _manifest(self) -> Iterator[bytes]:
        yield b"facts\0"
        left = [b""]
        while left:
            at = left.pop()
            try:
                records = list(self._look(at, left))
            except OSError:
                records = [b"./%s\0d 0 0 0 0 0\0" % at]
            yield b"".join(records)
            if len(self._is_merged) > NAMES_LIMIT:
                raise WorkspaceError("There are more files in the box than are taken.", next_step=TOO_MUCH)
        yield b"/\0000\0"

    def _look(self, at: bytes, left: list[bytes]) -> Iterator[bytes]:
        """The records of one folder; the folders in it are added to *left*."""
        with self._folder(at) as folder:
            if at and self._mark(folder, "opaque"):
                self._is_merged[at] = False
            if at and self._mark(folder, "redirect"):
                raise UnclearError("A folder was renamed.")
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    path = b"%s/%s" % (at, name) if at else name
                    with suppress(FileNotFoundError):
                        info = entry.stat(follow_symlinks=False)
                        kind = stat.S_IFMT(info.st_mode)
                        if kind == stat.S_IFCHR and info.st_rdev == 0:
                            self._is_merged[path] = None
                            continue
                        self._is_merged[path] = kind == stat.S_IFDIR and name != b".git"
                        if self._is_merged[path] and len(path) <= LONGEST:
                            left.append(path)
                            continue
                        if kind == stat.S_IFREG and info.st_size:
                            self._check_is_whole(folder, entry.name)
                        letter = _LETTERS.get(kind, b"D") if name == b".git" or kind != stat.S_IFDIR else b"f"
                        facts = (letter, info.st_ino, info.st_size, info.st_mode, info.st_mtime_ns, info.st_ctime_ns)
                        yield b"./%s\0%s %d %d %o %d %d\0" % (path, *facts)

    def _check_is_whole(self, folder: int, name: str) -> None:
        """Raise UnclearError if what is in a file lies below. No kernel does that where the marks are a user's."""
        if self._marks.startswith("trusted."):
            with suppress(OSError):
                if f"{self._marks}metacopy" in os.listxattr(f"/proc/self/fd/{folder}/{name}", follow_symlinks=False):
                    raise UnclearError("Of a file only the facts were copied.")

    def _mark(self, folder: int, name: str) -> bool:
        try:
            value = os.getxattr(folder, self._marks + name)
        except OSError:  # it has none, or its file system knows none
            return False
        if name == "opaque" and value != b"y":
            raise UnclearError(f"A folder is {value!r}.")
        return True

    def _archive(self, names: list[bytes]) -> Iterator[bytes]:
        """Some files and links as tar, and the block that ends it."""
        parts: list[bytes] = []
        held = code = 0
        for name in names:
            try:
                for part in self._member(name):
                    parts.append(part)
                    held += len(part)
                    if held >= CHUNK:
                        yield b"".join(parts)
                        parts, held = [], 0
            except OSError:
                code = 1
        parts += [END, b"%-511.511s\n" % (b"container-runner: end %d" % code)]
        yield b"".join(parts)

    def _member(self, path: bytes) -> Iterator[bytes]:
        at, _, name = path.rpartition(b"/")
        folder = self._held(at)
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(info.st_mode):
            yield member(path, kind=b"2", mode=0o777, link=os.readlink(name, dir_fd=folder))
            return
        if not stat.S_ISREG(info.st_mode):
            raise OSError(None, "it is no file")
        fd = _open_owned(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, folder)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(None, "it is no file")
            yield member(path, size=info.st_size, mode=stat.S_IMODE(info.st_mode))
            left = info.st_size
            while left:
                data = os.read(fd, min(left, CHUNK)) or bytes(min(left, CHUNK))
                left -= len(data)
                yield data
            yield padding(info.st_size)
        finally:
            os.close(fd)

    def _held(self, at: bytes) -> int:
        """A descriptor of a folder, which stays open until the next one is asked for."""
        if self._open is None or self._open[0] != at:
            self._let_go()
            self._open = (at, self._enter(at))
        return self._open[1]

    def _let_go(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    @contextmanager
    def _folder(self, at: bytes) -> Iterator[int]:
        fd = self._enter(at)
        try:
            yield fd
        finally:
            os.close(fd)

    def _enter(self, at: bytes) -> int:
        """A descriptor of a folder, on a way without links."""
        fd = _open_owned(b".", _FOLDER, self._top)
        for name in at.split(b"/") if at else ():
            try:
                inner = _open_owned(name, _FOLDER, fd)
            finally:
                os.close(fd)
            fd = inner
        return fd


def _open_owned(name: bytes, flags: int, folder: int) -> int:
    """Open a file or folder in an open folder. If its owner, who we are then, may not read it, first let him."""
    try:
        return os.open(name, flags, dir_fd=folder)
    except PermissionError:
        path = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            mode = stat.S_IMODE(os.fstat(path).st_mode)
            os.chmod(f"/proc/self/fd/{path}", mode | (0o700 if flags & os.O_DIRECTORY else 0o400))
        finally:
            os.close(path)
        return os.open(name, flags, dir_fd=folder)


def marks_of(*, is_rootless: bool) -> str | None:
    """How the names of the attributes begin that the kernel keeps for an overlay; None if we may not read them."""
    if is_rootless:
        return "user.overlay."
    return "trusted.overlay." if os.geteuid() == 0 else None


def touches_git(folder: str) -> bool:
    """Whether a box has written what may be another HEAD into the upper folder of a repository."""
    try:
        fd = os.open(folder, _FOLDER)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return any(name not in _QUIET for name in os.listdir(fd))
    finally:
        os.close(fd)


def is_kept_below(path: Path) -> bool:
    """Whether something of this machine is at *path*: a file, or a folder with a file in it."""
    if not path.is_dir() or path.is_symlink():
        return os.path.lexists(path)
    return any(files for _, _, files in os.walk(path))
