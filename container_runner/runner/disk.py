"""Watches what a run adds to the folders of this machine that its agent can write.

It is a watch and no wall: the folders are walked now and then, and between two walks an agent writes what it likes.
What holds is a quota of the file system. It takes a thread: a `Process` does nothing while nobody reads it, and a
reader may take its time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Self

import anyio
import anyio.to_thread

from container_runner.box.plan import Plan
from container_runner.errors import DiskLimitError
from container_runner.quantities import in_bytes
from container_runner.workspace.usage import StoppedError, TooMuchError, used

LEAST: Final = 5.0
"""Seconds between two walks, at least."""

SHARE: Final = 50
"""A walk may take one part in so many of the time, so the next is the later the longer one takes."""

TURN_PATIENCE: Final = 60.0
"""Seconds that a walk waits for others, of which a few at a time are made. Theirs may hang with a file system."""

FIRST_TIMEOUT: Final = 600.0
"""Seconds that the walk before the start may take."""

LAST_TIMEOUT: Final = 60.0
"""Seconds that the walk after the end may take. Then what was seen before counts."""

_log = logging.getLogger(__name__)
_turns: Final = threading.BoundedSemaphore(2)

UNMEASURED: Final = "Run it without --disk-limit, and give the folder a file system with a quota if that matters."


class DiskWatch:
    """One run's, made by `begin`: once the agent is at work `go_on`; `last`, when it has ended; `close` in any case.

    Args:
        folders: the folders, or files, that the agent can write.
        limit: the bytes that it may add to them, all together.
    """

    def __init__(self, folders: tuple[str, ...], limit: int) -> None:
        self._folders = folders
        self._limit = limit
        self._stop = threading.Event()
        self._before: Mapping[str, int] = {}
        self._took = 0.0
        self._thread: threading.Thread | None = None
        self.over: DiskLimitError | None = None
        """What is wrong, once it is more than it may be, or can not be measured any more."""

    @classmethod
    async def begin(cls, plan: Plan) -> Self | None:
        """See how much there is before the agent of *plan* has written anything; None if it may write what it likes.

        Raises:
            DiskLimitError: it can not be measured.
        """
        if plan.disk_limit is None:
            return None
        self = cls(plan.writable, plan.disk_limit)
        try:
            with anyio.fail_after(FIRST_TIMEOUT):
                await self._in_thread(self._first)
        except TimeoutError:
            self.over = self._unmeasured(f"it took longer than {FIRST_TIMEOUT:g} seconds")
        if self.over is not None:
            raise self.over
        return self

    def go_on(self) -> None:
        """Look now and then from now on, until `close`."""
        self._thread = threading.Thread(target=self._run, name="container-runner disk", daemon=True)
        self._thread.start()

    async def last(self) -> DiskLimitError | None:
        """What is wrong, now that nothing more is written; None if nothing is."""
        if self.over is None:
            with anyio.move_on_after(LAST_TIMEOUT):
                await self._in_thread(self._look)
        return self.over

    async def close(self) -> None:
        """Look no more, and leave no thread behind that can end."""
        self._stop.set()
        if self._thread is not None:
            await anyio.to_thread.run_sync(self._thread.join, TURN_PATIENCE, abandon_on_cancel=True)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        try:
            await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
        except BaseException:
            self._stop.set()  # or it would go on for nobody
            raise

    def _run(self) -> None:
        while self.over is None and not self._stop.wait(max(LEAST, self._took * (SHARE - 1))):
            self._look()

    def _first(self) -> None:
        self._before = self._counted() or {}

    def _look(self) -> None:
        if (now := self._counted()) is None:
            return
        added = {folder: size - self._before.get(folder, 0) for folder, size in now.items()}
        if (total := sum(added.values())) > self._limit:
            most = max(added, key=added.__getitem__)
            message = (
                f"The agent has added {in_bytes(total)} to this machine's disk, most of it in {most}, and may add"
                f" {in_bytes(self._limit)}."
            )
            error = DiskLimitError(message)
            error.limit, error.added, error.folder = self._limit, total, most
            self.over = error

    def _counted(self) -> Mapping[str, int] | None:
        """What each folder takes; None if that is not known."""
        began = time.monotonic()
        try:
            with self._turn():
                return used(self._folders, self._stop.is_set)
        except TooMuchError as error:
            self.over = self._unmeasured(str(error))
        except StoppedError:
            pass
        except OSError as error:  # it may be better the next time
            _log.warning("what an agent adds to the disk is not known just now: %s", error.strerror)
        finally:
            self._took = time.monotonic() - began
        return None

    def _unmeasured(self, reason: str) -> DiskLimitError:
        error = DiskLimitError(f"What the agent adds to this machine's disk can not be measured: {reason}.")
        error.next_step, error.limit = UNMEASURED, self._limit
        return error

    @contextmanager
    def _turn(self) -> Iterator[None]:
        ends_at = time.monotonic() + TURN_PATIENCE
        while not (is_ours := _turns.acquire(timeout=0.2)) and time.monotonic() < ends_at:
            if self._stop.is_set():
                raise StoppedError
        try:
            yield
        finally:
            if is_ours:
                _turns.release()
