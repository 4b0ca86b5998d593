"""Bytes in, bounded lines out. No I/O, so every way a stream can be cut is a plain test."""

from __future__ import annotations

import re
import sys

from container_runner.errors import ConfigError
from container_runner.stream.own import OversizedLine as OversizedLine

HEAD_SIZE = 4096
"""How many bytes of a line that is too long are kept, at most."""


class LineSplitter:
    r"""Cuts a stream of chunks into lines. How the stream was cut into chunks makes no difference.

    A line ends with `b"\n"` and with nothing else; one `b"\r"` at its end is taken off too.

    Args:
        limit: the longest line in bytes, without its newline. A longer one becomes an `OversizedLine`,
            and no more than this and one chunk is ever held. None, the default, takes any length.

    Raises:
        ConfigError: the limit is less than 1.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            allowed = "a number of bytes from 1, or None for lines of any length"
            raise ConfigError(field="limit", value=limit, allowed=allowed)
        self.limit = sys.maxsize if limit is None else limit
        # The line that has not ended yet: all of it, or its head once it is over the limit.
        # A bytearray grows in place, so a long line in many chunks costs linear time.
        self._held = bytearray()
        self._size = 0

    def push(self, chunk: bytes) -> list[bytes | OversizedLine]:
        """The lines that end in this chunk, without their newlines."""
        first, *rest = chunk.split(b"\n")
        self._hold(first)
        if not rest:
            return []
        *whole, last = rest
        lines = [self._take()]
        if b"\r" in chunk or len(chunk) > self.limit:
            for line in whole:
                self._hold(line)
                lines.append(self._take())
        else:  # nearly every chunk: short lines, ready as they are
            lines += whole
        self._hold(last)
        return lines

    def flush(self) -> list[bytes | OversizedLine]:
        """The last line, if the stream ended without a newline; afterwards the splitter is as new."""
        return [self._take()] if self._size else []

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        self._held += part
        if self._size > self.limit:
            del self._held[min(self.limit, HEAD_SIZE) :]

    def _take(self) -> bytes | OversizedLine:
        held, size = self._held, self._size
        self._held, self._size = bytearray(), 0
        if size > self.limit:
            return OversizedLine(size, bytes(held))
        if held.endswith(b"\r"):
            del held[-1]
        return bytes(held)


class Chunks:
    """In place of a `LineSplitter`: what comes is handed on as it is, for a stream that has no lines."""

    limit = sys.maxsize

    def push(self, chunk: bytes) -> list[bytes | OversizedLine]:
        """The chunk itself."""
        return [chunk]

    def flush(self) -> list[bytes | OversizedLine]:
        """Nothing: all was handed on."""
        return []


class Exact:
    """In place of a `LineSplitter`: what comes is handed on as it comes, with lines of ours as pieces of their own.

    Those may begin anywhere on a line, so what may become the beginning of one is held back.

    Args:
        ours: what such a line is, with its newline.
        start: how each of them begins.
    """

    def __init__(self, ours: re.Pattern[bytes], start: bytes) -> None:
        self.limit = sys.maxsize
        self._ours = ours
        self._start = start
        self._held = b""

    def push(self, chunk: bytes) -> list[bytes | OversizedLine]:
        """What is known by now to be the stream's own, and our lines, without their newlines."""
        data, at = self._held + chunk, 0
        pieces: list[bytes | OversizedLine] = []
        for found in self._ours.finditer(data):
            pieces += [data[at : found.start()], found[0][:-1]]
            at = found.end()
        held_from = max(at, self._may_begin(data))
        self._held = data[held_from:]
        return [piece for piece in (*pieces, data[at:held_from]) if piece]

    def flush(self) -> list[bytes | OversizedLine]:
        """What was held back."""
        held, self._held = self._held, b""
        return [held] if held else []

    def _may_begin(self, data: bytes) -> int:
        """Where in *data* a line of ours may begin that has not ended; its length if nowhere."""
        line = data[-HEAD_SIZE:].rpartition(b"\n")[2]  # ours are shorter
        begin = line.find(self._start)
        if begin < 0:
            ends = (
                size for size in range(min(len(self._start), len(line)), 0, -1) if line.endswith(self._start[:size])
            )
            begin = len(line) - next(ends, 0)
        return len(data) - len(line) + begin
