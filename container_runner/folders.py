"""Folders and files below the state folder, opened on a way without symlinks: one in there leads nowhere else."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from container_runner.errors import ConfigError, StateError

LONGEST: Final = 64 * 1024
"""The most bytes of a file that an agent may have made which are read."""


def expanded(path: str | os.PathLike[str], field: str) -> Path:
    """A path with the home folder in the place of its ~.

    Raises:
        ConfigError: it begins with a ~, and there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(field, str(path), "a path without ~, because no home folder is known; or set HOME") from None


@contextmanager
def open_folder(state: Path, *parts: str, create: bool = False) -> Iterator[int]:
    """A descriptor of a folder below the state folder, on a way without symlinks.

    Raises:
        OSError: it is not there, or something else is; with *create*, also if it belongs to somebody else.
    """
    if create:
        state.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # whoever named it may have named a link
    try:
        for part in parts:
            if part in ("", ".", "..") or "/" in part:
                raise OSError(None, "it is no name")
            if create:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=fd)
            outer, fd = fd, os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(outer)
            if create:
                _make_private(fd)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def open_to_read(state: Path, *place: str, what: str) -> Iterator[int]:
    """A descriptor of the file at *place* below the state folder, on a way without symlinks.

    Args:
        what: how an error calls it.

    Raises:
        StateError: it is not there any more, or not to be read by us.
    """
    *folders, name = place
    try:
        with open_folder(state, *folders) as folder:
            fd = open_file(folder, name)
    except OSError as error:
        raise StateError(f"{what} can not be read: {error.strerror}.") from None
    try:
        yield fd
    finally:
        os.close(fd)


def open_file(folder: int, name: str) -> int:
    """A descriptor to read a regular file from, and nothing that stands in its place.

    Raises:
        OSError: it is not there, or is no file.
    """
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(None, "it is no file")
    return fd


def _make_private(fd: int) -> None:
    info = os.fstat(fd)
    if info.st_uid != os.geteuid():
        raise OSError(None, "the folder of the records belongs to somebody else")
    if stat.S_IMODE(info.st_mode) & 0o077:
        os.fchmod(fd, 0o700)


def read_regular(file: Path, *, longest: int = LONGEST) -> bytes:
    """What is in a file that an agent may have made: a link is not followed, a pipe not waited for.

    Raises:
        OSError: it is no regular file, has more than *longest* bytes, or can not be read.
    """
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "It is no regular file", str(file))
        content = os.read(fd, min(longest, found.st_size) + 1)
        if len(content) > longest:
            raise OSError(errno.EFBIG, f"It is longer than {longest} bytes", str(file))
        return content
    finally:
        os.close(fd)
