"""Whether the head of a Ray cluster answers somewhere, which Ray itself would try to find out for minutes.

The few frames are read by hand: gRPC opens a window by nothing, for which the library for HTTP/2 ends a connection.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from container_runner.box.environment import host_environment

_METHOD: Final = b"/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What Ray's own client asks first."""

_WORDS: Final = (
    (b"\4", _METHOD),
    (b"\1", b"head"),
    (b"\0\x0ccontent-type", b"application/grpc"),
    (b"\0\2te", b"trailers"),
)
_HEADERS: Final = b"\x83\x86" + b"".join(name + bytes([len(value)]) + value for name, value in _WORDS)
"""Those of a POST by http, as HPACK has them without a table of its own."""

_CALL: Final = (
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4" + bytes(5))
    + (b"\0\0" + bytes([len(_HEADERS)]) + b"\1\4\0\0\0\1" + _HEADERS)
    + (b"\0\0\5\0\1\0\0\0\1" + bytes(5))
)
"""A call by gRPC: the preface of HTTP/2 and settings, which are empty, the headers, and a message that is empty."""

_UNKNOWN: Final = b"grpc-status\x0212"
"""In the headers of an answer: the server knows no such method."""

_SETTINGS: Final = 4
_ANSWER: Final = 1
_ENDS: Final = (3, 7)
"""The kinds of frames that matter. Settings come first, and anything may come between them and the answer."""

_FRAME: Final = 16384
"""Bytes that a frame may have, as we have said nothing else."""


async def greet(host: str, port: int) -> None:
    """See that somebody there answers as the head of a cluster does.

    Raises:
        OSError: nobody does.
    """
    async with await anyio.connect_tcp(host, port) as stream:
        if host_environment().get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return  # Ray says the rest
        await stream.send(_CALL)
        answer = await _answer(BufferedByteReceiveStream(stream))
    if answer is None:
        raise ConnectionError("What answers there is no head of a Ray cluster.")
    if _UNKNOWN in answer:
        raise ConnectionError("What answers there is no head of a Ray cluster, but speaks as the port of Ray Client.")


async def _answer(stream: BufferedByteReceiveStream) -> bytes | None:
    """The headers of an answer; None if something else comes."""
    is_greeted = False
    with suppress(anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
        while True:
            frame = await stream.receive_exactly(9)
            size, kind = int.from_bytes(frame[:3]), frame[3]
            if size > _FRAME or kind in _ENDS or not (is_greeted or kind == _SETTINGS):
                return None
            content = await stream.receive_exactly(size)
            if kind == _ANSWER:
                return content
            is_greeted = True
    return None
