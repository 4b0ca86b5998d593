"""Containers that are started before they are needed, each for one run."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import attrs

from container_runner.box import guest
from container_runner.box.plan import Plan
from container_runner.engine.engine import PULL_TIMEOUT, start_limiter
from container_runner.engine.manager import Containers
from container_runner.engine.names import fits
from container_runner.errors import EngineError, EngineTimeoutError
from container_runner.stream.process import Process, settle

if TYPE_CHECKING:
    from container_runner.gateway.gateway import Gateway

REFILL_DELAY: Final = 0.2
"""Seconds until a container that was taken is replaced: the run that has it is to start first."""

_log = logging.getLogger(__name__)


@attrs.frozen
class Warm:
    """A container that waits for its run."""

    plan: Plan
    """What it was made by."""

    process: Process
    """The engine's client. Its stdin is the container's lease, and takes the run's header and prompt."""

    gateway: Gateway | None = None
    """Its way out, if it has one."""

    @property
    def is_good(self) -> bool:
        """Whether it still waits, and a run that begins now has half of its time limit at least."""
        return self.process.returncode is None and time.time() < self.plan.ends_at - self.plan.time_limit / 2


@attrs.define(eq=False, repr=False)
class Pool:
    """Keeps *size* containers ready, all made by the same command: one configuration, one workspace, one agent.

    Nothing of a run is in them: its secrets, its prompt and its command come on stdin.
    """

    _manager: Containers
    _make_plan: Callable[[], Plan]
    """Makes a plan of a run that such a container would serve."""
    _size: int
    _ready: deque[Warm] = attrs.field(factory=deque, init=False)
    _spent: deque[Warm] = attrs.field(factory=deque, init=False)
    """Those that no run will take any more, to be removed."""
    _asked: anyio.Event = attrs.field(factory=anyio.Event, init=False)

    def __len__(self) -> int:
        """How many containers are ready."""
        return len(self._ready)

    def take(self, digest: str) -> Warm | None:
        """A container for one run, or None if none is ready that its plan, with this `Plan.digest`, would have made.

        The caller owns it, and ends its client.
        """
        self._asked.set()
        for warm in [warm for warm in self._ready if warm.plan.digest == digest]:
            self._ready.remove(warm)
            if warm.is_good:
                return warm
            self._spent.append(warm)
        return None

    async def fill(self) -> None:
        """Keep the pool full, until cancelled. What can not be made is left to the runs themselves to report.

        No error ends it, whosever it is: it would end the caller's block, whose runs can do without the pool.
        """
        while True:
            self._asked = anyio.Event()
            try:
                await self._sort_out()
                while len(self._ready) < self._size:
                    await self._add()
            except Exception as error:
                _log.warning("the pool can not be filled: %s", error)
            await self._asked.wait()
            await anyio.sleep(REFILL_DELAY)

    async def close(self) -> None:
        """Remove what nobody took."""
        self._spent += self._ready
        self._ready.clear()
        await self._remove_spent()

    async def _sort_out(self) -> None:
        """Remove what has ended, and what is no more what a run would make: files of the workspace's were replaced."""
        digest = self._make_plan().digest
        for warm in list(self._ready):
            if warm.plan.digest != digest or not warm.is_good:
                self._ready.remove(warm)
                self._spent.append(warm)
        await self._remove_spent()

    async def _remove_spent(self) -> None:
        for warm in self._spent:
            warm.process.close_stdin()  # all at once; then each is waited for
        while self._spent:
            await self._end(self._spent[0])
            self._spent.popleft()

    async def _end(self, warm: Warm) -> None:
        await settle(partial(self._manager.end_client, warm.process, warm.plan.container))
        if warm.gateway is not None:
            await warm.gateway.stop()

    async def _add(self) -> None:
        plan, engine = self._make_plan(), self._manager.engine
        if plan.prepare():
            plan = self._make_plan()
        async with start_limiter():
            warm = Warm(plan, await engine.start(plan.waiting, gate=guest.ready_line(plan.run_id)), gateway_of(plan))
            try:
                if not await warm.process.wait_for_gate(PULL_TIMEOUT):
                    raise EngineError("A container of the pool ended before it was ready.")
                if not await fits(engine, plan):
                    await self._end(warm)  # the next one has no names of another image
                    return
                if warm.gateway is not None:
                    await warm.gateway.start(plan.forward_in(plan.container), engine.environ)
            except BaseException as error:
                await self._end(warm)
                if isinstance(error, TimeoutError):
                    raise EngineTimeoutError("A container of the pool was not ready in time.") from None
                raise
        self._ready.append(warm)


def gateway_of(plan: Plan) -> Gateway | None:
    """A gateway for a plan that wants one, to be started in its container."""
    if plan.gateway is None:
        return None
    from container_runner.gateway.gateway import Gateway

    return Gateway(plan.gateway)
