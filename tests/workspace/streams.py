"""Streams that a box could send, made by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from container_runner.stream.pipe import Pipe
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.way_out import Outcome, receive

FACTS = b"%s 1 %d 644 1.0000000000 1.0000000000"


def block(text: str) -> bytes:
    return b"container-runner: %s" % text.encode().ljust(493) + b"\n"


def record(path: bytes, kind: bytes = b"f", size: int = 1) -> bytes:
    return b"./%s\0%s\0" % (path, FACTS % (kind, size))


def manifest(*records: bytes, code: int = 0) -> bytes:
    return b"facts\0%s/\0%d\0" % (b"".join(records), code)


class Stream:
    """Stands in for a `Pipe`: says what it was given, whatever it is asked."""

    def __init__(self, chunks: Iterable[bytes], code: int = 0) -> None:
        self._chunks = iter(chunks)
        self._code = code
        self.asked = b""

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        try:
            return next(self._chunks)
        except StopIteration:
            raise StopAsyncIteration from None

    def send(self, data: bytes, *, last: bool = False) -> None:
        self.asked += data

    async def wait(self) -> int:
        return self._code


async def take(shadow: Shadow, *chunks: bytes, code: int = 0, asks: bytes | None = None) -> Outcome:
    """Receive a stream that is honest but for its content: a manifest, then what is asked for and its end."""
    stream = Stream(chunks, code)
    outcome = await receive(shadow, "r", cast("Pipe", stream))
    assert asks is None or stream.asked == asks
    assert list(shadow.folder.glob("scratch-*")) == []
    return outcome
