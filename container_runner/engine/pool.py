"""Containers that are started before they are needed, each for one run."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
import attrs

from container_runner.box import argv, guest
from container_runner.box.plan import Plan
from container_runner.engine.engine import start_limiter
from container_runner.engine.failures import spawn_error
from container_runner.engine.manager import Container, ContainerManager
from container_runner.errors import ContainerRunnerError, EngineTimeoutError
from container_runner.stream.process import Process, settle

HOLD_TIMEOUT: Final = 30.0
"""Seconds that a new container may take until somebody holds its lease."""

REFILL_DELAY: Final = 0.2
"""Seconds until a container that was taken is replaced: the run that has it is to start first."""

_log = logging.getLogger(__name__)


@attrs.frozen
class Warm:
    """A container that waits for its run."""

    container: Container

    plan: Plan
    """What it was made by."""

    holder: Process
    """The exec that holds its lease until the run does. It ends with us, as a run's own exec does."""

    @property
    def is_good(self) -> bool:
        """Whether it still waits, and would live long enough for a run."""
        return self.holder.returncode is None and self.container.is_fresh

    async def let_go(self) -> None:
        """End the lease. A container that no run has taken leaves by itself."""
        self.holder.close_stdin()
        with anyio.move_on_after(2):
            await self.holder.wait()
        await self.holder.terminate()
        self.holder.close()


class Pool:
    """Keeps *size* containers ready, all made by the same command: one configuration, one workspace, one agent.

    Nothing of a run is in them: its secrets, its prompt and its command travel with its own exec.

    Args:
        make_plan: makes a plan of a run that such a container would serve.
    """

    def __init__(self, manager: ContainerManager, make_plan: Callable[[], Plan], size: int) -> None:
        self._manager = manager
        self._make_plan = make_plan
        self._size = size
        self._ready: deque[Warm] = deque()
        self._spent: deque[Warm] = deque()
        """Those that no run will take any more, to be removed."""
        self._asked = anyio.Event()

    def __len__(self) -> int:
        """How many containers are ready."""
        return len(self._ready)

    def take(self, digest: str) -> Warm | None:
        """A container for one run, or None if none is ready that its plan, with this `Plan.digest`, would have made.

        The caller owns it: it ends the lease and removes the container.
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
        while self._spent:
            warm = self._spent.popleft()
            await settle(partial(self._discard, warm.container, warm))

    async def _add(self) -> None:
        plan, engine = self._make_plan(), self._manager.engine
        if plan.prepare():
            plan = self._make_plan()
        command = argv.hold_argv(engine.binary, name=plan.container, user=plan.user, run_id=plan.run_id)
        async with start_limiter():
            container = await self._manager.get_or_create(plan)
            warm: Warm | None = None
            try:
                holder = await Process.start(
                    command, env=engine.environ, hold_stdin=True, gate=guest.started_line(plan.run_id)
                )
                warm = Warm(container, plan, holder)
                if not await holder.wait_for_gate(HOLD_TIMEOUT):
                    raise EngineTimeoutError("A container of the pool ended before it could be held.")
            except BaseException as error:
                await settle(partial(self._discard, container, warm))
                if isinstance(error, TimeoutError):
                    raise EngineTimeoutError("A container of the pool could not be held in time.") from None
                if isinstance(error, OSError):
                    raise spawn_error(command, error) from None
                raise
        self._ready.append(warm)

    async def _discard(self, container: Container, warm: Warm | None) -> None:
        if warm is not None:
            await warm.let_go()
        try:
            await self._manager.engine.remove(container.name)
        except ContainerRunnerError as error:
            _log.warning("%s may be left: %s", container.name, error)
