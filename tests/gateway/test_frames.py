"""What a forwarder may say, and what ends it: whoever is in the box can write to its pipe, were it only by chance."""

from __future__ import annotations

import struct
from pathlib import Path

import anyio
import pytest

from container_runner.gateway import frames
from container_runner.gateway.forwarder import MOST_CHANNELS
from container_runner.gateway.frames import (
    CONNECT,
    CREDIT,
    DATA,
    EOF,
    LONGEST,
    OPEN,
    OURS,
    RESET,
    UNSENT,
    WINDOW,
    Channel,
    Gone,
    Mux,
    Violation,
)
from container_runner.stream.process import Process, settle


def frame(kind: int, number: int, payload: bytes = b"") -> bytes:
    return struct.pack("!BBHI", kind, 0, len(payload), number) + payload


async def hear(said: bytes, serve: object = None) -> bytes:
    """What a forwarder that says this is told. *serve* is what is done with each channel."""
    echo = ["sh", "-c", 'head -c "$0"; cat >&2', str(len(said))]
    process = await Process.start(echo, stdin=said, chunks=True, hold_stdin=True)
    try:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:

                async def one(channel: Channel) -> None:
                    if serve is not None:
                        await serve(channel)  # type: ignore[operator]  # the test gives it
                    process.close_stdin()

                def accept(channel: Channel) -> None:
                    tasks.start_soon(one, channel)

                await Mux(process).run(accept)
            await process.read()
        return bytes(process.stderr)
    finally:
        await settle(process.terminate)
        process.close()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "what is no frame"),
        (frame(9, 1), "what is no frame"),
        (struct.pack("!BBHI", OPEN, 1, 0, 1), "what is no frame"),
        (struct.pack("!BBHI", DATA, 0, LONGEST + 1, 1), "what is no frame"),
        (frame(OPEN, 2) + frame(OPEN, 2), "a channel's number for the second time"),
        (frame(OPEN, 2) + frame(OPEN, 1), "a channel's number for the second time"),
        (frame(DATA, 1, b"x"), "a frame of a channel that was never opened"),
        (frame(CONNECT, OURS, b"\0\x50"), "what is no frame"),  # only we may have somebody connected to
        (frame(OPEN, OURS), "a channel's number for the second time"),
        (frame(DATA, OURS, b"x"), "a frame of a channel that was never opened"),
        (b"".join(frame(OPEN, n + 1) for n in range(MOST_CHANNELS + 1)), "more channels than there may be"),
        (frame(OPEN, 1) + frame(EOF, 1) + frame(DATA, 1, b"x"), "more bytes than there was room for"),
        (frame(OPEN, 1) + frame(DATA, 1, b"x" * LONGEST) * (CREDIT // LONGEST + 1), "more bytes than there was room"),
        (frame(OPEN, 1) + frame(WINDOW, 1, struct.pack("!I", 1)), "a window that is too wide"),
        (frame(OPEN, 1) + frame(WINDOW, 1, b"abc"), "a window of another size"),
    ],
)
async def test_a_breach_of_the_protocol_ends_the_forwarder(said: bytes, why: str) -> None:
    with pytest.raises((Violation, ExceptionGroup)) as breach:
        await hear(said, lambda _: anyio.sleep(60))
    error = breach.value
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Violation)
    assert why in str(error)


async def test_bytes_are_never_sent_beyond_the_credit() -> None:
    async def serve(channel: Channel) -> None:
        with anyio.move_on_after(0.2):
            await channel.send(b"x" * (CREDIT + 1))
        assert channel.sent == CREDIT

    told = await hear(frame(OPEN, 1), serve)

    assert told.count(b"x") == CREDIT or len(told) < CREDIT  # stderr keeps the end of it


async def test_the_channels_that_we_open_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MOST_OURS", 2)
    process = await Process.start(["cat"], chunks=True, hold_stdin=True)
    try:
        mux = Mux(process)
        first, _ = mux.open(80), mux.open(80)
        with pytest.raises(Gone, match="too many"):
            mux.open(80)
        await first.close(politely=False)
        assert mux.open(80).number > first.number
    finally:
        await settle(process.terminate)
        process.close()


async def test_an_end_and_a_reset_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container_runner.stream.process.CHUNK", 8)  # the reset comes by itself
    seen = []

    async def serve(channel: Channel) -> None:
        seen.append(await channel.receive())
        try:
            seen.append(await channel.receive())
        except Gone:
            seen.append(b"gone")

    await hear(frame(OPEN, 1) + frame(DATA, 1, b"a") + frame(EOF, 1), serve)
    await hear(frame(OPEN, 1) + frame(DATA, 1, b"b") + frame(RESET, 1), serve)

    assert seen == [b"a", b"", b"b", b"gone"]


async def test_what_is_opened_and_reset_in_one_breath_is_no_work() -> None:
    seen = []

    async def serve(channel: Channel) -> None:
        seen.append(channel.number)

    many = b"".join(frame(OPEN, number) + frame(RESET, number) for number in range(1, 1000))
    await hear(many + frame(OPEN, 1000) + frame(EOF, 1000), serve)

    assert seen == [1000]


async def test_what_was_not_sent_before_a_reset_is_not_counted(tmp_path: Path) -> None:
    """The box reads nothing, so that the pipe is full, and then resets the connection that waits for room in it."""
    many, last = range(1, 6), 6
    opened = b"".join(frame(OPEN, number) for number in (*many, last))
    (tmp_path / "reset").write_bytes(frame(RESET, last))
    script = 'head -c "$0"; until [ -e "$1/now" ]; do sleep 0.05; done; cat "$1/reset"; exec sleep 1000'
    command = ["sh", "-c", script, str(len(opened)), str(tmp_path)]
    process = await Process.start(command, stdin=opened, hold_stdin=True, chunks=True)
    found: list[Channel] = []

    async def serve(channel: Channel) -> None:
        if channel.number < last:
            await channel.send(b"x" * CREDIT)
            return
        found.append(channel)
        while process.unsent < UNSENT:
            await anyio.sleep(0.01)
        (tmp_path / "now").touch()
        with pytest.raises(Gone):
            await channel.send(b"x")
        tasks.cancel_scope.cancel()

    def accept(channel: Channel) -> None:
        tasks.start_soon(serve, channel)

    try:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                await Mux(process).run(accept)
        assert [channel.sent for channel in found] == [0]
    finally:
        await settle(process.terminate)
        process.close()


async def test_a_frame_cut_anywhere_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container_runner.stream.process.CHUNK", 3)
    seen = []

    async def serve(channel: Channel) -> None:
        while data := await channel.receive():
            seen.append(data)

    await hear(frame(OPEN, 1) + frame(DATA, 1, b"abcdef") + frame(DATA, 1, b"ghi") + frame(EOF, 1), serve)

    assert b"".join(seen) == b"abcdefghi"
