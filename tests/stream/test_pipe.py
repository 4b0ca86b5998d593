"""Bytes through real small processes, on both event loops."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from container_runner.stream.pipe import open_pipe

pytestmark = pytest.mark.anyio

DATA = os.urandom(3_000_000)


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


async def chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("size", [1_000, 100_000, len(DATA)])
async def test_what_goes_in_by_chunks_comes_out_byte_for_byte(size: int) -> None:
    async with open_pipe(["cat"], stdin=chunks(DATA, size)) as pipe:
        said = b"".join([chunk async for chunk in pipe])
        assert await pipe.wait() == 0

    assert hashlib.sha256(said).digest() == hashlib.sha256(DATA).digest()


async def test_bytes_that_are_no_lines_stay_as_they_are() -> None:
    async with open_pipe(["cat"], stdin=b"a\r\n\0b\n\n") as pipe:
        assert b"".join([chunk async for chunk in pipe]) == b"a\r\n\0b\n\n"


async def test_questions_and_answers_over_a_stdin_that_is_held() -> None:
    async with open_pipe(sh("while read -r word; do echo [$word]; done; echo end"), stdin=None) as pipe:
        pipe.send(b"one\n")
        assert await anext(pipe) == b"[one]\n"
        pipe.send(b"two\n", last=True)
        assert b"".join([chunk async for chunk in pipe]) == b"[two]\nend\n"
        assert await pipe.wait() == 0


async def test_a_process_that_does_not_want_the_rest_ends_the_asking_for_it() -> None:
    asked = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield b"x" * 100_000

    source = endless()
    async with open_pipe(sh("head -c 5; exec <&-; echo no >&2; exit 3"), stdin=source) as pipe:
        assert b"".join([chunk async for chunk in pipe]) == b"xxxxx"
        assert await pipe.wait() == 3
        assert pipe.stderr == "no\n"
    await source.aclose()  # type: ignore[attr-defined]  # it is a generator

    assert 0 < asked < 100


async def test_who_leaves_early_leaves_no_process(tmp_path: Path) -> None:
    with anyio.move_on_after(0.5) as scope:
        async with open_pipe(sh(f"echo $$ >{tmp_path}/pid; exec sleep 1000"), stdin=None) as pipe:
            await anext(pipe)

    assert scope.cancelled_caught
    assert not is_alive(int((tmp_path / "pid").read_text()))


async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        async with open_pipe(["/nowhere"]):
            pytest.fail("it was started")
