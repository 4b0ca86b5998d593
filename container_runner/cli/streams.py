"""The standard streams of a command, and the signals that end it. Who does not read is waited for by one task alone."""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, suppress
from typing import Final

import anyio

from container_runner.stream.lines import LineSplitter, OversizedLine

CHUNK: Final = 64 * 1024

MOST_HELD: Final = 16 * 1024**2
"""How many bytes that nobody has read yet are held for who comes late. What comes then is dropped."""

LAST_PATIENCE: Final = 5.0
"""Seconds that the last of them may take."""

PARENT_POLL: Final = 1.0
"""Seconds between two looks at whether the program that has started us is still there."""


class Stdin:
    """stdin, by chunks or by lines."""

    def __init__(self) -> None:
        self._splitter = LineSplitter()
        self._lines: deque[bytes | OversizedLine] = deque()
        self._has_ended = False
        self._is_waited_for = True

    async def chunk(self) -> bytes:
        """The next bytes; none at the end."""
        if self._is_waited_for:
            try:
                await anyio.wait_readable(0)
            except PermissionError:  # a file, or /dev/null: it is always ready
                self._is_waited_for = False
        return os.read(0, CHUNK)

    async def line(self) -> bytes | None:
        """The next line, without its newline; None at the end. Cancelling it loses nothing."""
        while not self._lines and not self._has_ended:
            chunk = await self.chunk()
            self._has_ended = not chunk
            self._lines += self._splitter.push(chunk) if chunk else self._splitter.flush()
        line = self._lines.popleft() if self._lines else None
        assert not isinstance(line, OversizedLine)  # noqa: S101  there is no limit
        return line


class Output:
    """stdout or stderr. What was not written of one piece, because that was cancelled, comes before the next one."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held = bytearray()
        self._writing = anyio.Lock(fast_acquire=True)
        self._has_more = anyio.Event()

    async def write(self, data: bytes = b"") -> None:
        """Write this, and what is held. Who does not read it is waited for, and meanwhile all else goes on.

        Raises:
            OSError: nobody will read it.
        """
        async with self._writing:
            self._held += data
            while self._held:
                # Where anything can be written, so many bytes can. (A file is always ready, and can not be waited for.)
                if not select.select([], [self._fd], [], 0)[1]:
                    await anyio.wait_writable(self._fd)
                del self._held[: os.write(self._fd, self._held[: select.PIPE_BUF])]

    def hold(self, data: bytes) -> None:
        """Have this written by `keep_writing`."""
        if len(self._held) < MOST_HELD:
            self._held += data
        self._has_more.set()

    async def keep_writing(self) -> None:
        """Write what is held, until nobody will read it."""
        with suppress(OSError):
            while True:
                await self.write()
                self._has_more = anyio.Event()
                await self._has_more.wait()

    async def write_last(self) -> None:
        """Write what is held, and give up after `LAST_PATIENCE`."""
        with suppress(OSError), anyio.move_on_after(LAST_PATIENCE):
            await self.write()


def ending_signals() -> AbstractContextManager[AsyncIterator[signal.Signals]]:
    """The signals by which somebody ends or interrupts us, as they come."""
    return anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def wait_for_parent(parent: int) -> None:
    """Wait until the program that has started us, as the process *parent*, is gone."""
    while os.getppid() == parent:
        await anyio.sleep(PARENT_POLL)
