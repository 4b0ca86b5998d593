"""Many connections over one pair of pipes: the frames, and our end of them.

    type u8, 0 u8, length u16, channel u32, and then the payload, all big-endian

The forwarder in the box opens channels, one for each TCP connection, and numbers them upwards. We have it connect to a
port in the box by `CONNECT`, on channels whose numbers begin at `OURS`; only we can. Either side sends what
the other has given it credit for, so a reader that is slow holds up nobody but its own writer, and memory is bounded by
`MOST_CHANNELS` times `CREDIT` each way. Both sides count a channel until it is reset, or both ends have been sent: the
same moment in the order of frames, so a breach of the limit is one, and ends the forwarder. It never ends the run.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from select import PIPE_BUF
from typing import Final, cast

import anyio

from container_runner.gateway.forwarder import MOST_CHANNELS
from container_runner.stream.process import Process

OPEN: Final = 1
DATA: Final = 2
EOF: Final = 3
RESET: Final = 4
WINDOW: Final = 5
CONNECT: Final = 6

OURS: Final = 1 << 31
"""The first number of a channel that we open."""

MOST_OURS: Final = 100
"""How many of those there may be at a time, beside those of the box."""

HEAD: Final = struct.Struct("!BBHI")
LONGEST: Final = 32 * 1024
"""The longest payload in bytes."""

CREDIT: Final = 256 * 1024
"""How many bytes one side may send on a channel that the other has not taken yet."""

UNSENT: Final = 512 * 1024
"""How many bytes may wait for the engine's client to take them, before writers wait."""

LAST_WORDS: Final = 30.0
"""Seconds that a client gets to read the last of what was sent to it, before the connection is taken back. What is with
the kernel by then it can still read."""

_WINDOW = struct.Struct("!I")
_PORT = struct.Struct("!H")


class Gone(Exception):  # noqa: N818  often it is the normal end
    """The other end of a channel is no more."""


class Violation(Exception):  # noqa: N818  the box commits it
    """The forwarder does not keep to the frames: somebody has forged them. It is ended."""


class Channel:
    """One TCP connection of the box, as a stream of bytes."""

    def __init__(self, mux: Mux, number: int) -> None:
        self._mux = mux
        self.number = number
        self.received = 0
        """Bytes that the box has sent."""
        self.sent = 0
        """Bytes that it was sent."""
        self.scope = anyio.CancelScope()
        """Is cancelled when the connection is reset: what is done for it need not go on."""
        self.is_reset = False
        self.has_ended = False
        """Whether the box has sent its last byte."""
        self._has_sent_end = False
        self._credit = CREDIT
        self._room = CREDIT
        self._taken = 0
        self._held = bytearray()
        self._changed: anyio.Event | None = None

    @property
    def is_over(self) -> bool:
        """Whether neither side may send any more."""
        return self.is_reset or (self.has_ended and self._has_sent_end)

    async def receive(self) -> bytes:
        """The next bytes; b"" at the end.

        Raises:
            Gone: the connection was reset.
        """
        while not self._held:
            if self.is_reset:
                raise Gone
            if self.has_ended:
                return b""
            await self._change()
        data = bytes(self._held)
        self._held.clear()
        self._taken += len(data)
        if self._taken >= CREDIT // 4 and not self.has_ended:
            taken, self._taken = self._taken, 0
            self._room += taken
            await self._mux.write(WINDOW, self.number, _WINDOW.pack(taken))
        return data

    async def send(self, data: bytes | bytearray) -> None:
        """Send bytes, as fast as they are taken.

        Raises:
            Gone: the connection was reset.
        """
        at = 0
        while at < len(data):
            while self._credit <= 0 and not self.is_reset:
                await self._change()
            if self.is_reset or self._has_sent_end:
                raise Gone
            part = data[at : at + min(LONGEST, self._credit)]
            self._credit -= len(part)
            if not await self._mux.write(DATA, self.number, part):
                raise Gone
            self.sent += len(part)
            at += len(part)

    async def send_end(self) -> None:
        """Send the end of what we send. Nothing happens if that is over."""
        if not self._has_sent_end and not self.is_reset:
            self._has_sent_end = True
            await self._mux.write(EOF, self.number)
            self._mux.forget(self)

    async def close(self, *, politely: bool) -> None:
        """Let go of the connection.

        Args:
            politely: let the client read to the end and hang up first. Otherwise it is reset, as one whose other end
                was lost.
        """
        with anyio.CancelScope(shield=True), anyio.move_on_after(LAST_WORDS):
            try:
                if politely:
                    await self.send_end()
                    while await self.receive():  # a reset would overtake what was sent
                        pass
            except Gone:
                pass
        if not self.is_over:
            self._mux.write_soon(RESET, self.number)
        self.reset()
        self._mux.forget(self)

    def take(self, kind: int, payload: bytes) -> None:
        """Take a frame of the forwarder's.

        Raises:
            Violation: it is not one that may come now.
        """
        if kind == DATA:
            self._room -= len(payload)
            self.received += len(payload)
            if self.has_ended or self._room < 0:
                raise Violation("more bytes than there was room for")
            self._held += payload
        elif kind == EOF:
            self.has_ended = True
        elif kind == RESET:
            self.reset()
        elif kind == WINDOW and len(payload) == _WINDOW.size:
            self._credit += _WINDOW.unpack(payload)[0]
            if self._credit > CREDIT:
                raise Violation("a window that is too wide")
        else:
            raise Violation("a window of another size")
        self._wake()

    def reset(self) -> None:
        """Take it as gone."""
        self.is_reset = True
        self.scope.cancel()
        self._wake()

    async def _change(self) -> None:
        self._changed = self._changed or anyio.Event()
        await self._changed.wait()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


class Mux:
    """Our end of the pipes.

    Args:
        process: the forwarder's, or the engine's client that carries its stdin and stdout, started with `chunks`.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._channels: dict[int, Channel] = {}
        self._last = 0
        self._last_ours = OURS - 1
        self._drained = anyio.Event()
        self._fresh: list[Channel] = []
        """What was opened, and that nobody serves yet."""

    async def run(self, accept: Callable[[Channel], None]) -> None:
        """Carry frames until the forwarder has ended, and give each new channel to *accept*.

        Raises:
            Violation: it does not keep to the protocol.
        """
        held = bytearray()
        try:
            while self._process.talks:
                for chunk in cast("list[bytes]", await self._process.turn()):
                    held += chunk
                    del held[: self._take(held, accept)]
                if self._process.unsent < UNSENT:
                    self._drained.set()
                elif self._process.unsent > 4 * UNSENT:
                    raise Violation("it does not read")
        finally:
            for channel in list(self._channels.values()):
                channel.reset()
            self._channels.clear()
            self._drained.set()

    def open(self, port: int) -> Channel:
        """Connect to a port of the box's 127.0.0.1. Where nobody listens, the channel is soon reset.

        Raises:
            Gone: there are too many.
        """
        if sum(number >= OURS for number in self._channels) >= MOST_OURS:
            raise Gone("too many connections")
        self._last_ours += 1
        channel = self._channels[self._last_ours] = Channel(self, self._last_ours)
        self.write_soon(CONNECT, channel.number, _PORT.pack(port))
        return channel

    async def write(self, kind: int, number: int, payload: bytes | bytearray = b"") -> bool:
        """Send a frame, once the pipe is not too full; tell whether it was. None is ever cut, whatever is cancelled.

        It is not where its channel was reset meanwhile, or nobody is left who would take it.
        """
        while self._process.unsent >= UNSENT and self._process.takes_more:
            if number not in self._channels:
                return False
            self._drained = anyio.Event() if self._drained.is_set() else self._drained
            await self._drained.wait()
        self.write_soon(kind, number, payload)
        return self._process.takes_more

    def write_soon(self, kind: int, number: int, payload: bytes | bytearray = b"") -> None:
        """Send a frame, however full the pipe is. A short one goes at once: who waits for it counts the time."""
        frame = HEAD.pack(kind, 0, len(payload), number) + payload
        if len(frame) > PIPE_BUF or not self._process.prod(frame):
            self._process.give(frame)

    def forget(self, channel: Channel) -> None:
        """Count a channel no more, if it is over."""
        if channel.is_over:
            self._channels.pop(channel.number, None)

    def _take(self, held: bytearray, accept: Callable[[Channel], None]) -> int:
        """Take the whole frames of what is held, and tell how many bytes they are."""
        at = 0
        with memoryview(held) as view:
            while len(held) - at >= HEAD.size:
                kind, zero, size, number = HEAD.unpack_from(view, at)
                if zero or not OPEN <= kind <= WINDOW or size > LONGEST:
                    raise Violation("what is no frame")
                if len(held) - at < HEAD.size + size:
                    break
                at += HEAD.size
                self._take_one(kind, number, bytes(view[at : at + size]))
                at += size
        fresh, self._fresh = self._fresh, []
        for channel in fresh:
            if not channel.is_reset:  # what was opened and reset in one breath is no work
                accept(channel)
        return at

    def _take_one(self, kind: int, number: int, payload: bytes) -> None:
        if kind == OPEN:
            if not self._last < number < OURS:
                raise Violation("a channel's number for the second time")
            if sum(number < OURS for number in self._channels) >= MOST_CHANNELS:
                raise Violation("more channels than there may be")
            self._last = number
            self._fresh.append(self._channels.setdefault(number, Channel(self, number)))
        elif (known := self._channels.get(number)) is not None:
            known.take(kind, payload)
            self.forget(known)
            if kind == RESET:
                self._drained.set()  # who waits to write there need not
        elif number > (self._last if number < OURS else self._last_ours):
            raise Violation("a frame of a channel that was never opened")
