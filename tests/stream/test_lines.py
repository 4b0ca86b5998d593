"""A stream is the same lines however it was cut into chunks, and no line can take all the memory."""

from __future__ import annotations

import itertools
import re
import time
import tracemalloc

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.errors import ConfigError
from container_runner.stream.lines import HEAD_SIZE, Exact, LineSplitter, OversizedLine

STREAMS = st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"{}", b"\xff\x00", "ü\u2028".encode(), b"x" * 50])).map(
    b"".join
)
LIMITS = st.none() | st.integers(1, 80)


def split(*chunks: bytes, limit: int | None = None) -> list[bytes | OversizedLine]:
    splitter = LineSplitter(limit)
    return [line for chunk in chunks for line in splitter.push(chunk)] + splitter.flush()


def expected(stream: bytes, limit: int | None) -> list[bytes | OversizedLine]:
    lines = stream.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [
        line.removesuffix(b"\r")
        if limit is None or len(line) <= limit
        else OversizedLine(len(line), line[: min(limit, HEAD_SIZE)])
        for line in lines
    ]


@given(stream=STREAMS, limit=LIMITS, cuts=st.lists(st.integers(0, 400)))
def test_any_chunking_gives_the_same_lines(stream: bytes, limit: int | None, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(stream)]
    chunks = [stream[start:end] for start, end in itertools.pairwise(edges)]
    assert split(*chunks, limit=limit) == expected(stream, limit)


@given(stream=STREAMS, limit=LIMITS)
def test_single_bytes_give_the_same_lines(stream: bytes, limit: int | None) -> None:
    assert split(*(stream[i : i + 1] for i in range(len(stream))), limit=limit) == expected(stream, limit)


@pytest.mark.parametrize(
    ("stream", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a\n\nb\n", [b"a", b"", b"b"]),
        (b"a\r\nb\r\r\n", [b"a", b"b\r"]),
        (b"a\rb\n", [b"a\rb"]),
        ("a\u2028b\x0bc\x85d\n".encode(), ["a\u2028b\x0bc\x85d".encode()]),
        (b"no newline at the end", [b"no newline at the end"]),
        (b"\xff\x00\x1b\n", [b"\xff\x00\x1b"]),
    ],
)
def test_only_newlines_end_a_line(stream: bytes, lines: list[bytes]) -> None:
    assert split(stream) == lines


def test_a_carriage_return_and_its_newline_may_come_in_two_chunks() -> None:
    assert split(b"a\r", b"\nb\n") == [b"a", b"b"]


def test_a_line_of_exactly_the_limit_passes() -> None:
    assert split(b"12345\n123456\n1\n", limit=5) == [b"12345", OversizedLine(6, b"12345"), b"1"]


def test_an_oversized_last_line_is_not_lost() -> None:
    assert split(b"123456", limit=5) == [OversizedLine(6, b"12345")]


def test_the_head_of_an_oversized_line_is_bounded() -> None:
    (line,) = split(b"x" * 10_000 + b"\n", limit=9_000)
    assert line == OversizedLine(10_000, b"x" * HEAD_SIZE)


def test_flush_leaves_a_splitter_as_new() -> None:
    splitter = LineSplitter(3)
    splitter.push(b"four")
    assert splitter.flush() == [OversizedLine(4, b"fou")]
    assert splitter.flush() == []
    assert splitter.push(b"a\n") == [b"a"]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_no_line_can_keep_is_refused(limit: int) -> None:
    with pytest.raises(ConfigError, match=f"limit must be .*; got {limit}"):
        LineSplitter(limit)


def test_a_limit_bounds_the_memory() -> None:
    splitter = LineSplitter(1_000_000)
    chunk = b"x" * 65_536
    tracemalloc.start()
    try:
        for _ in range(1_000):
            assert splitter.push(chunk) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000
    assert splitter.flush() == [OversizedLine(65_536_000, b"x" * HEAD_SIZE)]


def seconds_for_one_line(chunks: int) -> float:
    start = time.perf_counter()
    (line,) = split(*[b"x" * 65_536] * chunks, b"\n")
    seconds = time.perf_counter() - start
    assert line == b"x" * 65_536 * chunks
    return seconds


def test_a_long_line_costs_linear_time() -> None:
    small = min(seconds_for_one_line(100) for _ in range(3))
    # 16 times as long: quadratic work would take 256 times as long.
    assert seconds_for_one_line(1_600) < 100 * small + 0.5


def test_many_lines_split_quickly() -> None:
    stream = (b"x" * 459 + b"\n") * 50_000
    chunks = [stream[i : i + 65_536] for i in range(0, len(stream), 65_536)]
    start = time.perf_counter()
    assert len(split(*chunks, limit=64 * 2**20)) == 50_000
    assert time.perf_counter() - start < 1  # measured: 0.02 s; a loop over bytes takes several seconds


def test_an_oversized_line_is_a_message() -> None:
    line = OversizedLine(9_999, b"{\xff\x1b")
    assert line.to_dict() == {"type": "oversized", "size": 9_999, "head": "{\ufffd\x1b"}
    assert orjson.loads(line.to_json()) == line.to_dict()
    assert repr(line) == "OversizedLine(9999 bytes, '{\ufffd\\x1b'…)"


OURS = re.compile(rb"container-runner: [a-z-]+ 0123\b[^\n]*\n")


def exactly(stream: bytes, sizes: list[int]) -> tuple[bytes, list[bytes]]:
    """What *stream*, cut into chunks of these sizes, comes to: its own bytes, and our lines."""
    exact, pieces, at = Exact(OURS, b"container-runner: "), list[bytes | OversizedLine](), 0
    for size in [*sizes, len(stream)]:
        pieces += exact.push(stream[at : at + size])
        at += size
    pieces += exact.flush()
    found = [piece for piece in pieces if isinstance(piece, bytes)]
    assert len(found) == len(pieces)
    return (
        b"".join(piece for piece in found if not OURS.match(piece + b"\n")),
        [piece for piece in found if OURS.match(piece + b"\n")],
    )


@given(
    st.lists(
        st.sampled_from([b"a", b"\r\n", b"\n", b"\xff", b"contain", b"container-runner: ", b"ended 0123", b"c"]),
        max_size=12,
    ),
    st.lists(st.integers(1, 9), max_size=30),
)
def test_exactly_what_was_said_comes_out_however_it_was_cut(parts: list[bytes], sizes: list[int]) -> None:
    said = b"".join(parts)
    if OURS.search(said + b"\n"):
        return  # nobody else knows the token
    end = b"container-runner: ended 0123 7\n"

    assert exactly(said + end, sizes) == (said, [end[:-1]])


def test_what_can_not_begin_a_line_of_ours_is_handed_on_at_once() -> None:
    exact = Exact(OURS, b"container-runner: ")

    assert exact.push(b"half a li") == [b"half a li"]
    assert exact.push(b"ne\r\n") == [b"ne\r\n"]
    assert exact.push(b"x cont") == [b"x "]
    assert exact.push(b"inent") == [b"continent"]
    assert exact.push(b"container-runner: is a program") == []
    assert exact.push(b"y" * 5000) == [b"container-runner: is a program" + b"y" * 5000]
