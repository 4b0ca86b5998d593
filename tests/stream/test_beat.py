"""The lease over a network."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from queue import Queue
from types import SimpleNamespace

import pytest

from container_runner.stream import beat
from container_runner.stream.beat import Beat, BeatingProcess


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beat, "BEAT", 0.02)


async def test_a_process_hears_of_us_though_nobody_reads_it() -> None:
    script = "import sys; [sys.stdin.readline() for _ in range(5)]; print('heard', flush=True); sys.stdin.read()"
    process = await BeatingProcess.start([sys.executable, "-c", script], hold_stdin=True)
    assert isinstance(process, BeatingProcess)
    process.begin_to_beat()

    assert await process.read() == [b"heard"]
    process.close_stdin()
    assert await process.wait(30) == 0
    process.close()


def test_nothing_is_written_to_what_has_the_number_later() -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    one = Beat(theirs)
    assert os.read(ours, 1) == b"\n"

    one.stop()

    assert not one.thread.is_alive()
    for fd in (ours, theirs):
        os.close(fd)


def test_a_pipe_that_is_full_or_has_no_reader_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = Queue[type[OSError]]()

    def write(fd: int, data: bytes) -> int:
        try:
            return os.write(fd, data)
        except OSError as error:
            failures.put(type(error))
            raise

    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    with suppress(BlockingIOError):
        while True:
            os.write(theirs, bytes(65536))
    monkeypatch.setattr(beat, "os", SimpleNamespace(write=write))
    one = Beat(theirs)

    assert failures.get(timeout=60) is BlockingIOError
    assert failures.get(timeout=60) is BlockingIOError
    os.close(ours)
    while failures.get(timeout=60) is not BrokenPipeError:
        pass
    assert failures.get(timeout=60) is BrokenPipeError
    one.stop()
    os.close(theirs)


async def test_one_that_has_ended_is_not_told() -> None:
    process = await BeatingProcess.start([sys.executable, "-c", ""], hold_stdin=True)
    assert isinstance(process, BeatingProcess)
    process.begin_to_beat()
    assert process._beat is not None
    assert await process.read() == []
    await process.wait()

    process.close()

    assert not process._beat.thread.is_alive()
