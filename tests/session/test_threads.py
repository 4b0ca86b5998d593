"""Functions in threads, which count until they have ended."""

from __future__ import annotations

import threading

import anyio
import anyio.to_thread
import pytest

from container_runner.session.asks import ToolCall
from container_runner.session.threads import Threads, TooManyThreadsError
from container_runner.session.tools import call_tool, tool


async def test_a_thread_that_nobody_waits_for_any_more_counts_until_its_end() -> None:
    threads, begun, go = Threads(1), threading.Event(), threading.Event()

    @tool
    def slow() -> str:
        begun.set()
        go.wait(60)
        return "done"

    called = ToolCall(id="1", name="slow", input={})
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call_tool, [slow], called, 60, threads)
            await anyio.to_thread.run_sync(begun.wait, 60)
            tasks.cancel_scope.cancel()
        refused = await call_tool([slow], called, 60, threads)
    finally:
        go.set()

    assert (refused.content, refused.is_error) == (("Too many calls are at work.",), True)
    with anyio.fail_after(60):
        while (await call_tool([slow], called, 60, threads)).is_error:
            await anyio.sleep(0.01)


async def test_a_thread_that_never_began_does_not_count() -> None:
    threads = Threads(1)
    for _ in range(3):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await threads.run(lambda: None)

    assert await threads.run(lambda: "done") == "done"


async def test_one_that_fails_gives_its_place_back() -> None:
    threads = Threads(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0)


async def test_slow_functions_hold_up_nothing_else_of_the_event_loop() -> None:
    threads, go = Threads(), threading.Event()
    begun = threading.Semaphore(0)

    def slow() -> None:
        begun.release()
        go.wait(60)

    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(50):  # more than the event loop's own threads
                tasks.start_soon(threads.run, slow)
            with anyio.fail_after(60):
                for _ in range(50):
                    await anyio.to_thread.run_sync(begun.acquire)
            go.set()
    finally:
        go.set()

    with pytest.raises(TooManyThreadsError):
        await Threads(0).run(lambda: None)
