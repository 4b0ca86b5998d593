"""What came of a box's connections, until somebody asks: what came of many alike is told once, and counted."""

from __future__ import annotations

import threading
from typing import Final

import attrs

from container_runner.gateway.server import Connection

MOST_TOLD: Final = 5_000
"""How many different ones are told apart. Beyond that only hosts are, and beyond as many of them only verdicts."""


@attrs.define(eq=False)
class Audit:
    """The connections of a run that nobody was told of yet. A flood of some pushes none of the others out."""

    _told: dict[str, dict[tuple[object, ...], Connection]] = attrs.field(factory=dict)
    """By verdict: what was denied pushes nothing out that was allowed."""
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def add(self, one: Connection) -> None:
        """Take a connection that has ended; from any thread."""
        ways = (
            (one.kind, one.verdict, one.host, one.port, one.method, one.path, one.status, one.reason),
            (one.kind, one.verdict, one.host, one.port),
            (one.verdict,),
        )
        with self._lock:
            alike = self._told.setdefault(one.verdict, {})
            for limit, way in enumerate(ways, start=1):
                if (known := alike.get(way)) is not None:
                    known.count += one.count
                    known.sent += one.sent
                    known.received += one.received
                    known.seconds = round(known.seconds + one.seconds, 4)
                    return
                if len(alike) < limit * MOST_TOLD or limit == len(ways):
                    alike[way] = one if limit == 1 else _less(one, of_host=limit == 2)
                    return

    def taken(self) -> list[Connection]:
        """All since it was last asked."""
        with self._lock:
            told, self._told = self._told, {}
        return [one for alike in told.values() for one in alike.values()]


def _less(one: Connection, *, of_host: bool) -> Connection:
    """A connection without what tells it from others."""
    same = attrs.evolve(one, method="", path="", status=None, reason="one of too many to tell apart")
    return same if of_host else attrs.evolve(same, kind="garbage", host="", port=0)
