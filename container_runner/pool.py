"""Containers that are started before they are needed, each for one run."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
import attrs

from container_runner import argv, guest
from container_runner.engine import spawn_error, start_limiter
from container_runner.errors import ContainerRunnerError, EngineTimeoutError
from container_runner.manager import Container, ContainerManager
from container_runner.mounts import prepare_sessions, recheck
from container_runner.plan import Plan
from container_runner.process import Process, settle

HOLD_TIMEOUT: Final = 30.0
"""Seconds that a new container may take until somebody holds its lease."""

_log = logging.getLogger(__name__)


@attrs.frozen
class Warm:
    """A container that waits for its run."""

    container: Container

    holder: Process
    """The exec that holds its lease until the run does. It ends with us, as a run's own exec does."""

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
        self._taken = anyio.Event()
        self.digest = make_plan().digest
        """What the containers are, as `Plan.digest`: a run takes none that its own plan would not have made."""

    def __len__(self) -> int:
        """How many containers are ready."""
        return len(self._ready)

    async def take(self) -> Warm | None:
        """A container for one run, or None if none is ready."""
        while self._ready:
            warm = self._ready.popleft()
            self._taken.set()
            if warm.holder.returncode is None:
                return warm
            await self._discard(warm.container, warm.holder)  # it ended while it waited
        return None

    async def fill(self) -> None:
        """Keep the pool full, until cancelled. What can not be made is left to the runs themselves to report."""
        while True:
            self._taken = anyio.Event()
            try:
                while len(self._ready) < self._size:
                    await self._add()
            except ContainerRunnerError as error:
                _log.warning("the pool can not be filled: %s", error)
            await self._taken.wait()

    async def close(self) -> None:
        """Remove what nobody took."""
        while self._ready:
            warm = self._ready[0]
            await settle(partial(self._discard, warm.container, warm.holder))
            self._ready.popleft()

    async def _add(self) -> None:
        plan, engine = self._make_plan(), self._manager.engine
        prepare_sessions(plan.state_dir, plan.agent, plan.user)
        recheck(plan.mounts)
        command = argv.hold_argv(engine.binary, name=plan.container, user=plan.user, run_id=plan.run_id)
        async with start_limiter():
            container = await self._manager.get_or_create(plan)
            holder: Process | None = None
            try:
                holder = await Process.start(
                    command, env=engine.environ, hold_stdin=True, gate=guest.started_line(plan.run_id)
                )
                if not await holder.wait_for_gate(HOLD_TIMEOUT):
                    raise EngineTimeoutError("A container of the pool ended before it could be held.")
                self._ready.append(Warm(container, holder))
            except BaseException as error:
                await settle(lambda: self._discard(container, holder))
                if isinstance(error, OSError):
                    raise spawn_error(command, error) from None
                raise

    async def _discard(self, container: Container, holder: Process | None) -> None:
        if holder is not None:
            await Warm(container, holder).let_go()
        try:
            await self._manager.release(container)
        except ContainerRunnerError as error:
            _log.warning("%s may be left: %s", container.name, error)
