"""What runners know of the engine that they use together."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

import anyio
import attrs
from anyio.lowlevel import RunVar

from container_runner.box.environment import host_environment
from container_runner.engine.engine import Engine
from container_runner.engine.manager import Containers
from container_runner.engine.tunnel import tunnelled


@attrs.define(eq=False, repr=False)
class Known:
    """What a runner has found out, for itself and for those that were made of it."""

    containers: Containers | None = None
    """Those of the engine. None: it was not asked yet."""
    has_pruned: bool = False
    """Whether what dead processes have left was looked for."""
    may_overlay: bool = True
    """Whether the engine has not refused an overlay yet."""

    @property
    def engine(self) -> Engine | None:
        """The engine, once it was asked."""
        return None if self.containers is None else self.containers.engine

    async def open(self, program: str, state_dir: Path) -> Containers:
        """The engine's containers; it is asked the first time, and when its tunnel is cut.

        Raises:
            EngineError: there is no engine, or it does not answer.
        """
        if (found := self._at_hand()) is not None:
            return found
        engine = await Engine.probe(program, host_environment())
        async with _lock(self):  # or two that begin together would make two connections
            if (found := self._at_hand()) is None:
                engine = attrs.evolve(engine, sees_files=self.engine is None or self.engine.sees_files)
                found = self.containers = Containers(await tunnelled(engine), state_dir)
        return found

    def _at_hand(self) -> Containers | None:
        tunnel = None if self.engine is None else self.engine.tunnel
        return self.containers if tunnel is None or tunnel.is_open else None


_locks: Final[RunVar[WeakKeyDictionary[Known, anyio.Lock]]] = RunVar("container_runner tunnels")


def _lock(known: Known) -> anyio.Lock:
    """Of this event loop: a runner may be used in several."""
    try:
        locks = _locks.get()
    except LookupError:
        _locks.set(locks := WeakKeyDictionary())
    return locks.setdefault(known, anyio.Lock())
