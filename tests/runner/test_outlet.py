"""What a run tells of its gateway while its agent works."""

from __future__ import annotations

from typing import Any

import pytest

from container_runner.gateway.server import Connection
from container_runner.records.tally import Tally
from container_runner.runner.outlet import Outlet
from container_runner.stream.own import ConnectionDenied


class Told:
    """A gateway and a record, for what an outlet asks of both."""

    def __init__(self, *connections: Connection) -> None:
        self.connections = [*connections]
        self.noted: list[dict[str, Any]] = []

    def taken(self) -> list[Connection]:
        return self.connections

    def note(self, _: str, **facts: Any) -> None:
        self.noted.append(facts)


API: dict[str, Any] = {"kind": "route", "host": "api.test", "port": 443}


@pytest.mark.parametrize(
    ("connection", "verdicts"),
    [
        (Connection(verdict="failed", status=502, reason="it can not be resolved", **API), ["failed"]),
        (Connection(verdict="failed", status=404, reason="there is no /x here", **API), []),
        (Connection(verdict="failed", reason="it hung up", **API), []),
        (Connection(verdict="allowed", status=502, **API), []),  # the service's own answer, which the agent tells
        (Connection(kind="http", verdict="failed", host="pypi.test", port=80, status=502, reason="x"), []),
        (Connection(kind="http", verdict="denied", host="evil.test", port=80, status=403, reason="x"), ["denied"]),
    ],
)
def test_what_is_denied_and_an_api_that_is_not_reached_are_told_once(
    connection: Connection, verdicts: list[str]
) -> None:
    told: Any = Told(connection, connection)
    outlet = Outlet(told, told)
    outlet.take(told)

    messages = outlet.denied()

    assert [message.verdict for message in messages] == verdicts
    assert outlet.denied() == []
    assert len(told.noted) == 4
    tally = Tally()
    for message in messages:
        assert isinstance(message, ConnectionDenied)
        assert message.reason == connection.reason
        tally.add(message)
    assert len(tally.denied) == verdicts.count("denied")
