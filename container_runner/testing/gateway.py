"""A gateway for boxes that are not there: nobody in them asks it for anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from container_runner.gateway.gateway import Gateway
from container_runner.gateway.plan import GatewayPlan


class PlayedGateway(Gateway):
    """Stands in the place of `Gateway`, with neither a thread nor a forwarder."""

    async def open(self) -> None:
        """Nothing is made ready."""

    async def start(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Nothing is started."""
        del argv, env
        self.is_started = True

    def become(self, plan: GatewayPlan) -> None:
        self.plan = plan
