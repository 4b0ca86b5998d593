"""Tar, written fast and read with suspicion.

Python's `tarfile` takes ten seconds for 50,000 files, and reads every dialect that there is. This writes what GNU tar
writes, and reads what GNU tar and busybox write of files and links; anything else ends the reading.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from typing import Final, Literal

import anyio.to_thread
import attrs

from container_runner.errors import WorkspaceError

BLOCK: Final = 512
CHUNK: Final = 1024 * 1024
ZEROS: Final = bytes(BLOCK)
END: Final = bytes(2 * BLOCK)

_LONGEST: Final = 64 * 1024
"""The longest name or link target that is read."""

_LONG_NAME: Final = b"././@LongLink"
_Kind = Literal["file", "link", "hard link", "other"]
_KINDS: Final[dict[bytes, _Kind]] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hard link",
    b"2": "link",
}


# Writing.


def member(
    name: bytes, *, kind: bytes = b"0", size: int = 0, mode: int = 0o644, mtime: int = 0, link: bytes = b""
) -> bytes:
    """The header of a member; of *size* bytes of content, and `padding`, behind it."""
    long = b""
    if len(name) > 100:
        long += member(_LONG_NAME, kind=b"L", size=len(name) + 1) + name + b"\0" + padding(len(name) + 1)
    if len(link) > 100:
        long += member(_LONG_NAME, kind=b"K", size=len(link) + 1) + link + b"\0" + padding(len(link) + 1)
    sized = b"%011o\0" % size if size < 8 << 30 else b"\x80" + size.to_bytes(11, "big")
    start = b"%s%07o\0000000000\0000000000\0%s%011o\0" % (name[:100].ljust(100, b"\0"), mode, sized, mtime)
    rest = b"%s%sustar  \0" % (kind, link[:100].ljust(100, b"\0"))
    checksum = b"%06o\0 " % (sum(start) + sum(rest) + 8 * 32)
    return long + (start + checksum + rest).ljust(BLOCK, b"\0")


def padding(size: int) -> bytes:
    """What fills the last block of *size* bytes."""
    return bytes(-size % BLOCK)


def file(name: bytes, content: bytes, *, mode: int = 0o644) -> bytes:
    """A small file, whole."""
    return member(name, size=len(content), mode=mode) + content + padding(len(content))


def write(top: bytes, names: Iterable[bytes], *, under: bytes = b"") -> Iterator[bytes]:
    """The files and links below *top*, in chunks of about a megabyte, without the archive's end.

    Links are not followed. What is gone, or is no file and no link, is left out; a file that shrinks while it is read
    is filled up, and of one that grows the rest is left out.

    Args:
        under: what stands in front of each name in the archive.
    """
    parts: list[bytes] = []
    held = 0
    for name in names:
        path = b"%s/%s" % (top, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            try:
                link = os.readlink(path)
            except OSError:
                continue
            parts.append(member(under + name, kind=b"2", mode=0o777, link=link))
            continue
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                continue
            mode = stat.S_IMODE(info.st_mode) & 0o777 | 0o400
            mtime = max(0, int(info.st_mtime))
            parts.append(member(under + name, size=info.st_size, mode=mode, mtime=mtime))
            left = info.st_size
            while left:
                data = os.read(fd, min(left, CHUNK)) or bytes(min(left, CHUNK))
                left -= len(data)
                held += len(data)
                parts.append(data)
                if held >= CHUNK:
                    yield b"".join(parts)
                    parts, held = [], 0
            parts.append(padding(info.st_size))
        finally:
            os.close(fd)
        held += BLOCK
    yield b"".join(parts)


class InThread:
    """The same, each made in a thread, so that the event loop goes on. Who stops in the middle need not close it."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def __aiter__(self) -> InThread:
        return self

    async def __anext__(self) -> bytes:
        chunk = await anyio.to_thread.run_sync(next, self._chunks, None)
        if chunk is None:
            raise StopAsyncIteration
        return chunk


async def joined(chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The same, but in chunks of a quarter of a megabyte: each is a turn of the event loop to whoever sends it."""
    held: list[bytes] = []
    size = 0
    async with aclosing(chunks):
        async for chunk in chunks:
            held.append(chunk)
            size += len(chunk)
            if size >= CHUNK // 4:
                yield b"".join(held)
                held, size = [], 0
    yield b"".join(held)


# Reading.


class Source:
    """A stream that is read by numbers of bytes.

    Args:
        chunks: the stream.
        limit: the most bytes that it may have.
    """

    def __init__(self, chunks: AsyncIterator[bytes], limit: int) -> None:
        self._chunks = chunks
        self._held = b""
        self._at = 0
        self._left = limit

    async def some(self, most: int = CHUNK) -> bytes:
        """Between 1 and *most* bytes; b"" at the end.

        Raises:
            WorkspaceError: the stream is longer than it may be.
        """
        while self._at >= len(self._held):
            chunk = await anext(self._chunks, None)
            if chunk is None:
                return b""
            self._left -= len(chunk)
            if self._left < 0:
                raise WorkspaceError("The box sends more than is taken.", next_step=TOO_MUCH)
            self._held, self._at = chunk, 0
        data = self._held[self._at : self._at + most]
        self._at += len(data)
        return data

    async def exactly(self, size: int) -> bytes:
        """*size* bytes. Raises WorkspaceError if the stream ends before."""
        parts = []
        while size:
            part = await self.some(size)
            if not part:
                raise cut_off()
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def line(self) -> bytes:
        """The bytes before the next newline, which is read too. Raises WorkspaceError if there is none."""
        parts: list[bytes] = []
        while True:
            end = self._held.find(b"\n", self._at)
            if end >= 0:
                parts.append(self._held[self._at : end])
                self._at = end + 1
                return b"".join(parts)
            parts.append(self._held[self._at :])
            self._at = len(self._held)
            data = await self.some(1)
            if not data:
                raise cut_off()
            self._at -= 1

    async def skip(self, size: int) -> None:
        """Read over *size* bytes. Raises WorkspaceError if the stream ends before."""
        while size:
            part = await self.some(min(size, CHUNK))
            if not part:
                raise cut_off()
            size -= len(part)

    def put_back(self, data: bytes) -> None:
        """Have *data* read next."""
        self._held, self._at = data + self._held[self._at :], 0


TOO_MUCH: Final = "Let the agent remove what is not to be kept, or let .gitignore name it."


def cut_off() -> WorkspaceError:
    """The stream has ended too early, or its process has failed."""
    return WorkspaceError("What the box says is cut off: nothing of it is taken over.", next_step=CUT_OFF)


CUT_OFF: Final = "The work is still in the box: `container-runner changes` fetches it again."


@attrs.frozen
class Member:
    """The header of a member that was read."""

    name: bytes
    kind: _Kind
    size: int
    mode: int
    link: bytes


async def read_member(block: bytes, source: Source) -> Member:
    """The member whose header begins with *block*; its content is still in *source*.

    Raises:
        WorkspaceError: it is none, or too long, or the stream ends.
    """
    long = {b"L": b"", b"K": b""}
    while True:
        kind = block[156:157]
        if not _is_header(block):
            raise garbled()
        size = _number(block[124:136])
        if kind not in long:
            break
        if size > _LONGEST:
            raise garbled()
        data = await source.exactly(size + -size % BLOCK)
        long[kind] = data[:size].rstrip(b"\0")
        block = await source.exactly(BLOCK)
    name = long[b"L"] or block[:100].partition(b"\0")[0]
    if not long[b"L"] and block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = b"%s/%s" % (prefix, name)
    link = long[b"K"] or block[157:257].partition(b"\0")[0]
    found: _Kind = _KINDS.get(kind, "other")
    return Member(name, found, size if found in ("file", "other") else 0, _number(block[100:108]), link)


def _is_header(block: bytes) -> bool:
    try:
        return int(block[148:156].strip(b" \0"), 8) == sum(block[:148]) + 8 * 32 + sum(block[156:])
    except ValueError:
        return False


def _number(field: bytes) -> int:
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if not digits.isdigit():  # int() would take a sign, and underscores
        raise garbled()
    try:
        return int(digits, 8)
    except ValueError:
        raise garbled() from None


def garbled() -> WorkspaceError:
    """The stream is not what was asked for."""
    step = "See that the image's tar is GNU's or busybox's. The work is still in the box."
    return WorkspaceError("What the box's tar says is not understood: nothing of it is taken over.", next_step=step)
