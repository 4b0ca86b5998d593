"""An event loop, asyncio's or trio's, as another thread sees it: nothing here waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    import trio


@attrs.frozen
class Loop:
    """The event loop of another thread."""

    _native: asyncio.AbstractEventLoop | trio.lowlevel.TrioToken
    _context: Context
    _tasks: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)
    """asyncio forgets tasks that nobody holds."""

    @classmethod
    def current(cls) -> Loop:
        """The one that runs in this thread. What it is given has this task's context."""
        try:
            return cls(asyncio.get_running_loop(), copy_context())
        except RuntimeError:
            import trio

            return cls(trio.lowlevel.current_trio_token(), copy_context())

    def call(self, function: Callable[[], object]) -> None:
        """Have it call a function, which must not fail. Nothing happens if the loop has ended."""
        with contextlib.suppress(RuntimeError):  # it is closed
            if isinstance(self._native, asyncio.AbstractEventLoop):
                self._native.call_soon_threadsafe(function)
            else:
                self._native.run_sync_soon(function)

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a task of its own, which must not fail. It is called in this loop's thread."""
        if isinstance(self._native, asyncio.AbstractEventLoop):
            task = self._native.create_task(work(), context=self._context)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            import trio

            trio.lowlevel.spawn_system_task(work, context=self._context)
