"""Sessions that are open before they are needed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import anyio
import anyio.abc
import attrs

from container_runner.session.session import Session

REFILL_DELAY: Final = 1.0
"""Seconds until one that was taken is replaced: its first turn is to begin undisturbed."""

_log = logging.getLogger(__name__)


@attrs.define(eq=False, repr=False)
class _Slot:
    """A session that somebody will use."""

    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    done: anyio.Event = attrs.field(factory=anyio.Event)
    ended: anyio.Event = attrs.field(factory=anyio.Event)
    session: Session | None = None
    error: Exception | None = None


@attrs.define(eq=False, repr=False)
class WarmSessions:
    """Keeps *size* sessions open, each for one user. Made by `ContainerRunner.warm_sessions`."""

    _open: Callable[[], AbstractAsyncContextManager[Session]]
    _size: int
    _ready: deque[_Slot] = attrs.field(factory=deque, init=False)
    _opening: int = attrs.field(default=0, init=False)
    _error: Exception | None = attrs.field(default=None, init=False)
    """Why the last one could not be opened; None if it could."""
    _news: anyio.Event = attrs.field(factory=anyio.Event, init=False)

    def __len__(self) -> int:
        """How many are ready."""
        return len(self._ready)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[Session]:
        """One of them, for the length of a block, or else the first that gets ready; another one is opened behind it.

        Raises:
            ContainerRunnerError: none can be opened, or what `ContainerRunner.open_session` raises at its end.
        """
        slot, session = await self._next()
        is_over = False
        try:
            yield session
            is_over = True
        finally:
            if not is_over:
                slot.scope.cancel()
            slot.done.set()
            with anyio.CancelScope(shield=True):  # the session's own end is bounded
                await slot.ended.wait()
        if slot.error is not None:
            raise slot.error

    async def fill(self) -> None:
        """Keep them ready, until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                news = self._news
                while len(self._ready) + self._opening < self._size and self._error is None:
                    self._opening += 1
                    tasks.start_soon(self._hold, _Slot())
                await news.wait()
                await anyio.sleep(REFILL_DELAY)

    async def _next(self) -> tuple[_Slot, Session]:
        self._error = None  # it is tried anew
        self._tell()
        while True:
            while self._ready:
                slot = self._ready.popleft()
                self._tell()
                if slot.session is not None and not slot.session.has_ended:
                    return slot, slot.session
                slot.done.set()
            if self._error is not None:
                raise self._error
            await self._news.wait()

    async def _hold(self, slot: _Slot) -> None:
        """Open one, and keep it open until it was used."""
        is_open = False
        try:
            with slot.scope:
                async with self._open() as slot.session:
                    is_open, self._opening = True, self._opening - 1
                    self._ready.append(slot)
                    self._tell()
                    await slot.done.wait()
        except Exception as error:  # whose it is, is for who takes it
            slot.error = error
            if not is_open:
                self._error = error
                _log.warning("a session could not be opened ahead: %s", error)
        finally:
            self._opening -= not is_open
            slot.ended.set()
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()
