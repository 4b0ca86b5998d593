"""The threads in which functions of the caller's run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from container_runner.session.codec import MOST_OPEN

T = TypeVar("T")


class TooManyThreadsError(Exception):
    """So many functions are at work already."""


class Threads:
    """So many at a time, those among them that nobody waits for any more: a thread can not be ended."""

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._free = threading.BoundedSemaphore(most)
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """Call *function* in one. If that is cancelled, it goes on, and its thread still counts.

        Raises:
            TooManyThreadsError: none is free.
        """
        if not self._free.acquire(blocking=False):
            raise TooManyThreadsError
        turn = threading.Lock()  # whoever gets it gives the place back: the thread, if it begins

        def work() -> T:
            if not turn.acquire(blocking=False):
                raise TooManyThreadsError  # it was cancelled before, and nobody hears this
            try:
                return function()
            finally:
                self._free.release()

        # One of its own: slow functions must not hold up whatever else the event loop does in threads.
        self._limiter = self._limiter or anyio.CapacityLimiter(self._most)
        try:
            return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            if turn.acquire(blocking=False):
                self._free.release()
