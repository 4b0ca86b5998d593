"""The files of an agent's sessions, sent into a box that can not see them, and fetched from it.

What comes back is as hostile as the agent: only files are taken, by their names, on a way without symlinks. What is in
the folder here may be as well, of a run that had it mounted.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from container_runner.errors import StateError, WorkspaceError
from container_runner.workspace import tar
from container_runner.workspace.tar import BLOCK, CHUNK, END, ZEROS, Source, read_member

LIMIT: Final = 512 * 1024**2
"""The most bytes that are taken."""

LARGEST: Final = 128 * 1024**2
"""The most bytes of one file; a larger one is not sent."""

MOST_FILES: Final = 20_000

DEEPEST: Final = 32
"""The most parts that a file's name has; what is deeper is left out. A folder below another holds a descriptor."""


def pack(folder: Path, names: Mapping[str, str]) -> tar.InThread:
    """A stream of tar with the files below some folders in *folder*.

    Args:
        names: the folders in there, each with its name in the box; "." is *folder* itself.
    """
    return tar.InThread(_pack(folder, names))


def _pack(folder: Path, names: Mapping[str, str]) -> Iterator[bytes]:
    for name, there in names.items():
        with suppress(OSError):  # it is not there yet, or a link
            top = _open(folder, name.split("/"))
            try:
                yield from _pack_folder(top, there)
            finally:
                os.close(top)
    yield END


def _pack_folder(top: int, there: str) -> Iterator[bytes]:
    yield tar.member(os.fsencode(f"{there}/"), kind=b"5", mode=0o700)
    yield from _pack_below(top, there)


def _pack_below(folder: int, there: str) -> Iterator[bytes]:
    if there.count("/") + 2 > DEEPEST:
        return
    with os.scandir(folder) as found:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_folder in entries:
        with suppress(OSError):  # it has gone, or become something else
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            try:
                yield from (_pack_below if is_folder else _pack_file)(fd, f"{there}/{name}")
            finally:
                os.close(fd)


def _pack_file(fd: int, there: str) -> Iterator[bytes]:
    """A file as it is now: one that shrinks meanwhile is filled up, and of one that grows the rest is left out."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_size > LARGEST:
        return
    yield tar.member(os.fsencode(os.path.normpath(there)), size=info.st_size, mode=0o600)
    left = info.st_size
    while left:
        data = _read(fd, left)
        left -= len(data)
        yield data
    yield tar.padding(info.st_size)


def _read(fd: int, left: int) -> bytes:
    most = min(left, CHUNK)
    try:
        return os.read(fd, most) or bytes(most)
    except OSError:  # its header has been told
        return bytes(most)


async def unpack(source: Source, folder: Path, names: Mapping[str, str]) -> int:
    """Write the files of a stream of tar into *folder*; tell how many.

    Args:
        names: as `pack` has them; what has another name is left out.

    Raises:
        WorkspaceError: it is no such stream, or too long.
        StateError: a file can not be written.
    """
    count = 0
    while block := await source.some(BLOCK):
        block += await source.exactly(BLOCK - len(block)) if len(block) < BLOCK else b""
        if block == ZEROS:  # an archive's end, behind which there may be another
            continue
        member = await read_member(block, source)
        place = _place(os.fsdecode(member.name), names) if member.kind == "file" else None
        if place is None:
            await source.skip(member.size + -member.size % BLOCK)
            continue
        if (count := count + 1) > MOST_FILES:
            raise WorkspaceError(f"The box has more than {MOST_FILES} files of sessions.", next_step=tar.TOO_MUCH)
        if member.size > LARGEST:
            raise WorkspaceError(f"A session's file has more than {LARGEST} bytes.", next_step=tar.TOO_MUCH)
        try:
            with _written(folder, place) as file:
                left = member.size
                while left:
                    data = await source.some(min(left, CHUNK))
                    if not data:
                        raise tar.cut_off()
                    file.write(data)
                    left -= len(data)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StateError(f"A session's file can not be written to {folder}: {reason}.") from None
        await source.skip(-member.size % BLOCK)
    return count


def _place(name: str, names: Mapping[str, str]) -> list[str] | None:
    """Where a file of the box lies here; None if it is none of the sessions'."""
    parts = [part for part in name.split("/") if part != "."]
    if not 0 < len(parts) <= DEEPEST or {"", ".."} & {*parts} or "\0" in name:
        return None
    for here, there in names.items():
        top = [part for part in there.split("/") if part != "."]
        if parts[: len(top)] == top and len(parts) > len(top):
            return [*(part for part in here.split("/") if part != "."), *parts[len(top) :]]
    return None


@contextmanager
def _written(folder: Path, place: list[str]) -> Iterator[BinaryIO]:
    """A new file, which takes its place once it is whole."""
    *above, name = place
    fd = _open(folder, above, create=True)
    part = f".{secrets.token_hex(8)}.part"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(part, flags, 0o600, dir_fd=fd), "wb") as file:
            _give(file.fileno(), fd)
            yield file
        os.rename(part, name, src_dir_fd=fd, dst_dir_fd=fd)
    except BaseException:
        with suppress(OSError):
            os.unlink(part, dir_fd=fd)
        raise
    finally:
        os.close(fd)


def _open(folder: Path, parts: list[str], *, create: bool = False) -> int:
    """A descriptor of a folder below *folder*, on a way without symlinks."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for part in parts:
            is_new = False
            if create:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=fd)
                    is_new = True
            outer, fd = fd, os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                if is_new:
                    _give(fd, outer)
            finally:
                os.close(outer)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _give(fd: int, folder: int) -> None:
    """Let a file belong to whom the folder that it is in belongs to: the agent's user."""
    owner = os.fstat(folder)
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.fchown(fd, owner.st_uid, owner.st_gid)
