"""`container-runner policy log`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from container_runner.cli.text import denied_told, render
from container_runner.gateway.server import Connection
from container_runner.records.tally import MOST_DENIED, Tally
from container_runner.stream.own import ConnectionDenied
from tests.records.written import recorder
from tests.small_engine import call

ALLOWED = Connection(
    kind="route", verdict="allowed", host="api.test", port=443, method="POST", path="/model/v1/messages", status=200,
    sent=10, received=20,
)  # fmt: skip
NOT_IN = "a.test:443 is not in allow_hosts"
DENIED = Connection(
    kind="connect",
    verdict="denied",
    host="evil\x1b[31m.test",
    port=443,
    method="CONNECT",
    status=403,
    reason="evil.test:443 is not allowed",
)


def write(state: Path, *connections: Connection) -> None:
    with recorder(state) as at_work:
        for connection in connections:
            at_work.note("connection", **connection.to_dict())


def test_the_connections_of_a_run_are_listed(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write(tmp_path, ALLOWED, DENIED)

    done = call(capfdbinary, "policy", "log", "--agent=bot", f"--state-dir={tmp_path}")
    first, second = done.out.splitlines()
    assert first.endswith("allowed POST api.test:443 /model/v1/messages (10 bytes out, 20 in)")
    assert second.endswith("denied CONNECT evil.test:443: evil.test:443 is not allowed")
    assert "\x1b" not in done.out

    done = call(capfdbinary, "policy", "log", "--denied", "--json", "--agent=bot", f"--state-dir={tmp_path}")
    (told,) = json.loads(done.out)
    assert (told["verdict"], told["port"], told["status"]) == ("denied", 443, 403)


def test_a_run_without_any_says_so(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write(tmp_path)

    done = call(capfdbinary, "policy", "log", "--agent=bot", f"--state-dir={tmp_path}")
    assert done.out.startswith("No connection was told of run ")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            ConnectionDenied("a.test", 443, "a.test:443 is not in allow_hosts"),
            "asked for a.test:443: denied; --allow-host=a.test allows it",
        ),
        (
            ConnectionDenied("a.test", 22, "a.test:22 is not in allow_hosts"),
            "asked for a.test:22: denied; --allow-host=a.test:22 allows it",
        ),
        (ConnectionDenied("x;y|sh", 443, "that is no host name"), "asked for x;y|sh:443: denied: that is no host name"),
        (ConnectionDenied("/other", 0, "there is no /other here"), "asked for /other: there is no /other here"),
        (ConnectionDenied("a.test", 443, "no route", "failed"), "a.test:443 is not reached: no route"),
    ],
)
def test_a_denial_says_what_would_allow_it_and_a_failure_why(message: ConnectionDenied, told: str) -> None:
    assert denied_told(message) == told
    assert render(message) == f"· {told}"


def test_denials_are_counted_once_and_not_without_end() -> None:
    tally = Tally()
    for number in range(MOST_DENIED + 10):
        for _ in range(2):
            tally.add(ConnectionDenied(f"{number}.test", 443, "x"))

    assert len(tally.denied) == MOST_DENIED
    assert next(iter(tally.denied)) == "0.test:443"
