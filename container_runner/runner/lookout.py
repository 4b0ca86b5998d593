"""Whether the container of a silent agent is still there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import anyio
import attrs

from container_runner.box.plan import Plan
from container_runner.engine.manager import Containers
from container_runner.errors import EngineError
from container_runner.runner.diagnosis import gone, info_of, out_of_reach

LOOK_INTERVAL: Final = 30.0
LOOK_INTERVAL_THERE: Final = 8.0
"""Seconds between two questions to the engine whether the container of a silent agent is there; on another machine."""

MISSES: Final = 3
"""How many questions in a row an engine on another machine may not answer: then the agent has ended, or does so."""

_log = logging.getLogger(__name__)


@attrs.define(eq=False, repr=False)
class Lookout:
    """Asks the engine for a run's container, now and then."""

    _manager: Containers
    _looked_at: float
    """When the engine was last asked, on the event loop's clock."""
    _misses: int = attrs.field(default=0, init=False)
    """How many questions in a row it has not answered."""

    @property
    def is_lost(self) -> bool:
        """Whether an engine on another machine is out of reach."""
        return self._misses > MISSES and not self._manager.engine.sees_files

    async def look(self, plan: Plan, said: Callable[[], str]) -> None:
        """Make sure that the container is there, if it is time to.

        Args:
            said: tells what the agent has said on stderr.

        Raises:
            EngineUnreachableError: an engine on another machine does not answer any more.
            ContainerGoneError: it is not there.
        """
        now, interval = anyio.current_time(), LOOK_INTERVAL if self._manager.engine.sees_files else LOOK_INTERVAL_THERE
        if now < self._looked_at + interval:
            return
        self._looked_at, self._misses = now, self._misses + 1
        if self.is_lost:
            raise out_of_reach()
        try:
            info = await info_of(self._manager.engine, plan)
        except EngineError as error:  # an engine that does not answer just now says nothing about the agent
            _log.info("looking after %s: %s", plan.container, error.message)
            return
        self._misses = 0
        if info is None or not info.has_processes:
            raise gone(plan, stderr=said())
