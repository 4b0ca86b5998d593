"""The headers of a request or an answer, on their way to the other side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

Headers = list[tuple[bytes, bytes]]

_HOP: Final = {
    *("connection", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate", "te", "trailer"),
    "upgrade",
}
"""Headers that are between two neighbours, and are not passed on."""


_FETCHING: Final = (b"mcp-client-", b"web-fetch-")
"""How the betas of Anthropic's API begin by which it connects to hosts that a request names."""


def without_fetching(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The `anthropic-beta` headers, without the betas by which the API would reach hosts for the box."""
    found: Headers = []
    for name, value in headers:
        words = [word for word in value.split(b",") if not word.strip().lower().startswith(_FETCHING)]
        if name == b"anthropic-beta" and words:
            found.append((name, b",".join(words)))
    return found


def passed_on(headers: Iterable[tuple[bytes, bytes]], dropped: Iterable[str]) -> Headers:
    """The headers that go on to the other side."""
    pairs = list(headers)
    named = b",".join(value for name, value in pairs if name == b"connection").lower().split(b",")
    framing = (b"content-length", b"transfer-encoding")
    left_out = {*(name.encode() for name in (*_HOP, *dropped)), *map(bytes.strip, named)} - {*framing}
    if any(name == b"transfer-encoding" for name, _ in pairs):  # of the two, this one counts; a service may differ
        left_out.add(b"content-length")
    # Some services take "_" for "-", so that another spelling of a header would stand beside ours.
    return [
        (name, value)
        for name, value in pairs
        if name not in left_out and (b"_" not in name or name.replace(b"_", b"-") not in {*left_out, *framing})
    ]
