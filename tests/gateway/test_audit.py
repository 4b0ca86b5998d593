"""What is told of a box's connections."""

from __future__ import annotations

import pytest

from container_runner.gateway import audit
from container_runner.gateway.audit import Audit
from container_runner.gateway.server import Connection


def denied(host: str = "evil.test", path: str = "/") -> Connection:
    return Connection(kind="http", verdict="denied", host=host, port=80, path=path, status=403, sent=10, reason="no")


def test_the_same_again_is_counted() -> None:
    told = Audit()
    told.add(denied())
    told.add(one := Connection(kind="connect", verdict="allowed", host="good.test", port=443, sent=5))
    for _ in range(99):
        told.add(denied())
    first, second = told.taken()

    assert (first.host, first.count, first.sent) == ("evil.test", 100, 1000)
    assert first.to_dict()["count"] == 100
    assert second is one
    assert "count" not in second.to_dict()
    assert told.taken() == []


def test_a_flood_of_what_differs_pushes_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MOST_TOLD", 10)
    told = Audit()
    told.add(Connection(kind="connect", verdict="allowed", host="good.test", port=443))
    for number in range(1000):
        told.add(denied(path=f"/{number}"))
    for number in range(1000):
        told.add(denied(f"{number}.evil.test"))
    told.add(Connection(kind="connect", verdict="allowed", host="late.test", port=443))
    all_ = told.taken()

    assert len(all_) <= 3 * 10
    assert sum(one.count for one in all_) == 2002
    assert all_[0].host == "good.test"
    assert next(one for one in all_ if one.host == "evil.test" and not one.path).count == 990
    assert [one.host for one in all_ if one.verdict == "allowed"] == ["good.test", "late.test"]
