"""How much room folders take on this machine's disk, though an agent is at work in them.

What is counted is what the file system has given to a file (its blocks), and not how long the file says it is. An agent
makes what lies there, so no link is followed, each folder is opened by its name in the one around it, no file is opened
at all, and a tree that no memory or descriptors would be enough for is not walked to its end.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Final

import attrs

MOST_ENTRIES: Final = 5_000_000
"""How many files and folders are counted."""

MOST_LEVELS: Final = 100
"""How deep folders may lie in each other: each holds two descriptors while what is in it is counted."""

MOST_LINKED: Final = 250_000
"""Of how many files with several names the numbers are remembered, so that each counts once."""

_BLOCK: Final = 512
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TooMuchError(Exception):
    """There is more than is counted: more entries, or more levels."""


class StoppedError(Exception):
    """Nobody waits for the count any more."""


def used(folders: Iterable[str], is_over: Callable[[], bool] = lambda: False) -> dict[str, int]:
    """The bytes that each takes. One that is not there takes nothing, and what we may not read is left out.

    Args:
        folders: paths of folders or files. One that lies in another one counts with that.
        is_over: whether nobody waits for it any more.

    Raises:
        TooMuchError: there is more than is counted.
        StoppedError: nobody waits for it any more.
        OSError: this process has no descriptors or no memory left.
    """
    count = _Count(is_over)
    return {folder: count.of(folder) for folder in _outermost(folders)}


@attrs.define(eq=False)
class _Count:
    _is_over: Callable[[], bool]
    _left: int = attrs.field(factory=lambda: MOST_ENTRIES, init=False)
    _linked: set[tuple[int, int]] = attrs.field(factory=set, init=False)

    def of(self, path: str) -> int:
        try:
            info = os.stat(path, follow_symlinks=False)
        except OSError as error:
            _check(error)
            return 0
        return self._size(info) + (self._within(path) if stat.S_ISDIR(info.st_mode) else 0)

    def _within(self, top: str) -> int:
        """What is in a folder, and in the folders in it."""
        size = 0
        levels: list[_Level] = []
        try:
            _descend(levels, top, None)
            while levels:
                if (entry := levels[-1].next()) is None:
                    levels.pop().close()
                    continue
                self._left -= 1
                if self._left < 0:
                    raise TooMuchError(f"there are more than {MOST_ENTRIES:,} files and folders")
                if self._is_over():
                    raise StoppedError
                try:
                    info = entry.stat(follow_symlinks=False)
                except OSError as error:
                    _check(error)
                    continue
                size += self._size(info)
                if stat.S_ISDIR(info.st_mode):
                    _descend(levels, entry.name, levels[-1].fd)
        finally:
            for level in levels:
                level.close()
        return size

    def _size(self, info: os.stat_result) -> int:
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            if (number := (info.st_dev, info.st_ino)) in self._linked:
                return 0
            if len(self._linked) < MOST_LINKED:
                self._linked.add(number)
        return info.st_blocks * _BLOCK


@attrs.frozen
class _Level:
    """A folder that is being read."""

    fd: int
    _entries: Iterator[os.DirEntry[str]]

    def next(self) -> os.DirEntry[str] | None:
        try:
            return next(self._entries, None)
        except OSError as error:
            _check(error)
            return None

    def close(self) -> None:
        self._entries.close()  # type: ignore[attr-defined]  # os.scandir's is one that can be closed
        os.close(self.fd)


def _descend(levels: list[_Level], name: str, at: int | None) -> None:
    """Open one more folder, if it is one still, and we may."""
    if len(levels) >= MOST_LEVELS:
        raise TooMuchError(f"there are folders that lie more than {MOST_LEVELS} deep")
    try:
        fd = os.open(name, _FOLDER, dir_fd=at)
        try:
            levels.append(_Level(fd, os.scandir(fd)))
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        _check(error)


def _check(error: OSError) -> None:
    """Raise what is ours, and not that of a file which has gone, has become another, or is not for us to read."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error


def _outermost(folders: Iterable[str]) -> Iterator[str]:
    given = dict.fromkeys(folders)
    for folder in given:
        if not any(str(parent) in given for parent in PurePosixPath(folder).parents):
            yield folder
