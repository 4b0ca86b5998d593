"""Answers without the secrets that were added on the way out."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.gateway.veil import Veil

SECRET = 'sk-"live"/ä+1234567890'


def through(veil: Veil, parts: list[bytes]) -> bytes:
    return b"".join([*map(veil.feed, parts), veil.rest()])


@pytest.mark.parametrize(
    "spelled",
    [
        SECRET,
        quote(SECRET, safe=""),
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        SECRET.replace("/", r"\/"),
        html.escape(SECRET),
        SECRET.replace("+", r"\u002B").replace("/", r"\u002F"),
        *(base64.b64encode(b"x" * before + SECRET.encode() + b"y" * before).decode() for before in (0, 1, 2)),
    ],
)
def test_every_usual_spelling_is_covered(spelled: str) -> None:
    text = f"before {spelled} after".encode()
    seen = through(Veil([SECRET]), [text])

    assert len(seen) == len(text)
    assert b"*" * 16 in seen
    assert spelled[4:12].encode() not in seen


@given(
    parts=st.lists(
        st.sampled_from([b"abcdefgh", b"abcd", b"efgh", b"cdefghij", b"ij", b"x", b"ab", b"gh"]), max_size=9
    ),
    size=st.integers(1, 7),
)
def test_however_it_is_cut_nothing_of_it_passes_and_nothing_else_is_lost(parts: list[bytes], size: int) -> None:
    """Two secrets of which one begins in the other."""
    data = b"".join(parts)
    veil = Veil(["abcdefgh", "cdefghij"])
    seen = through(veil, [data[at : at + size] for at in range(0, len(data), size)])

    assert len(seen) == len(data)
    assert b"abcdefgh" not in seen
    assert b"cdefghij" not in seen
    assert all(new in (old, ord("*")) for new, old in zip(seen, data, strict=True))
    if b"abcdefgh" not in data and b"cdefghij" not in data:
        assert seen == data


def test_how_much_is_held_back_tells_nothing_of_the_secret() -> None:
    ends = [b"sk-", b"sk_", SECRET.encode()[:15], b"sk-----------------"]
    came = {len(Veil([SECRET]).feed(b"x" * 999 + end.rjust(20, b"x"))) for end in ends}

    assert len(came) == 1
    assert 0 < came.pop() < 1_000


def test_a_line_that_is_whole_is_not_held_back() -> None:
    veil = Veil([SECRET])

    assert veil.feed(b"data: hello\n\n") == b"data: hello\n\n"
    assert veil.feed(b"data: ") == b""
    assert veil.feed(b"hello\nand") == b"data: hello\n"
    assert veil.rest() == b"and"


def test_without_secrets_everything_passes() -> None:
    assert through(Veil([]), [b"a", b"b"]) == b"ab"
    assert Veil(["abc"]).hide(b"abc") == b"abc"  # three bytes are in many a text
