"""The gateway of one run: made ready while its container starts, begun before its agent, and asked what it has done."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from container_runner.box import guest, script
from container_runner.box.plan import Plan
from container_runner.engine.engine import Engine
from container_runner.engine.pool import gateway_of
from container_runner.errors import ContainerRunnerError
from container_runner.records.recorder import Recorder
from container_runner.records.tally import MOST_DENIED
from container_runner.runner.beside import together
from container_runner.stream.own import ConnectionDenied
from container_runner.stream.process import Process

if TYPE_CHECKING:
    from container_runner.gateway.gateway import Gateway
    from container_runner.gateway.server import Connection

BEGIN_TIMEOUT: Final = 60.0
"""Seconds that an agent may take to start in a container that is there, its prompt's way included."""

LAST_WORDS: Final = 5.0
"""Seconds for a container to say why it ends, when its gateway did not start."""


@attrs.define(eq=False, repr=False)
class Outlet:
    """What a run has of a gateway: nothing, for one without."""

    _engine: Engine
    _record: Recorder
    _gateway: Gateway | None = attrs.field(default=None, init=False)
    _denied: dict[tuple[str, int, str], None] = attrs.field(factory=dict, init=False)

    def take(self, gateway: Gateway | None) -> None:
        """Have the gateway of a container that waited for its run."""
        self._gateway = gateway

    async def open(self, plan: Plan) -> None:
        """Make it ready, while the engine's client is at work."""
        self._gateway = gateway_of(plan)
        if self._gateway is not None:
            await self._gateway.open()

    async def begin(self, process: Process, plan: Plan) -> bool:
        """Wait until the agent has started, and tell whether it has. It waits for its gateway.

        Raises:
            TimeoutError: it had not started in time.
            ContainerRunnerError: the gateway can not be started.
        """
        started = partial(process.wait_for_gate, BEGIN_TIMEOUT)
        gateway = self._gateway
        if plan.gateway is None or gateway is None:
            return await started()
        if gateway.is_started:
            gateway.become(plan.gateway)
            process.give(guest.GO + plan.prompt)
            return await started()

        async def forward() -> bool:
            with self._record.trace.span("gateway"):
                await gateway.start(plan.forward_in(plan.container), self._engine.environ)
            process.give(guest.GO + plan.prompt)
            return True

        try:
            return await together(forward, started)
        except ContainerRunnerError:
            process.close_stdin()
            with suppress(TimeoutError):
                await process.wait_for_gate(LAST_WORDS)
                await process.wait(LAST_WORDS)
            if process.returncode in (None, script.EXIT_NO_HEADER):
                raise
            return False  # it has ended of its own accord, and says why

    @property
    def is_owed(self) -> bool:
        """Whether the box waits for a function of the caller's."""
        return self._gateway is not None and self._gateway.is_owed

    def expect_end(self) -> None:
        """The agent has ended: a forwarder that goes with its container is not missed."""
        if self._gateway is not None:
            self._gateway.expect_end()

    def denied(self) -> list[ConnectionDenied]:
        """What was refused for the first time since it was last asked, and a service of a route that can not be reached
        or used: an agent then tries for minutes, and says no more than 502. All that was done is written down."""
        connections = [] if self._gateway is None else self._gateway.taken()
        for connection in connections:
            self._record.note("connection", **connection.to_dict())
        told = {(c.host or c.path, c.port, c.verdict): c.reason for c in connections if _matters(c)}
        new = {what: reason for what, reason in told.items() if what not in self._denied}
        self._denied |= dict.fromkeys(list(new)[: MOST_DENIED - len(self._denied)])
        return [
            ConnectionDenied(host, port, reason, verdict)
            for (host, port, verdict), reason in new.items()
            if verdict != "allowed" and (host, port, verdict) in self._denied
        ]

    async def close(self) -> None:
        """End it, whatever state it is in."""
        if self._gateway is not None:
            await self._gateway.stop()
            self.denied()


def _matters(one: Connection) -> bool:
    return one.verdict == "denied" or (one.verdict == "failed" and one.kind == "route" and one.status == 502)
