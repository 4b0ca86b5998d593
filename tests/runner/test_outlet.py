"""What a run tells of its gateway while its agent works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from container_runner.agents import CommandRuntime
from container_runner.box import guest
from container_runner.config.container import ContainerConfig
from container_runner.gateway.server import Connection
from container_runner.options import Agent, ExecuteOptions
from container_runner.records.tally import Tally
from container_runner.runner import ContainerRunner
from container_runner.runner.outlet import Outlet
from container_runner.stream.messages import ErrorMessage
from container_runner.stream.own import ConnectionDenied
from tests.faults.live_engine import READ_HEADER


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


ENGINE = """\
#!/bin/sh
# A container that does not go on after "up" until its forwarder is there.
cd FOLDER || exit
case $1 in
  --version) echo 'Docker version 28.0.0, build fake' ;;
  run)
    for word; do case $word in --label=container-runner.run=*) run=${word#*.run=} ;; esac; done
    echo "container-runner: up $run" >&2
    until [ -e forwarding ]; do sleep 0.01; done
    echo "container-runner: ready $run" >&2
    READ_HEADER
    read -r go || exit 70
    head -c "$size" >prompt
    echo "container-runner: started $token" >&2
    echo said
    echo "container-runner: ended $token 0" >&2
    printf '\\ncontainer-runner: ended %s 0\\n' "$token"
    cat >/dev/null
    ;;
  exec)
    while [ "$1" != -- ]; do shift; done
    : >forwarding
    echo "container-runner: forwarding $7" >&2
    cat >/dev/null
    ;;
  inspect) echo '[]'; exit 1 ;;
esac
""".replace("READ_HEADER", READ_HEADER)


OPTIONS = ExecuteOptions(prompt="Hello", agent=Agent(name="bot"))


def runner(folder: Path, **box: Any) -> ContainerRunner:
    (folder / "docker").write_text(ENGINE.replace("FOLDER", str(folder)))
    (folder / "docker").chmod(0o755)
    config = ContainerConfig(image="i", engine=str(folder / "docker"), user="root", credentials="none", **box)
    return ContainerRunner(CommandRuntime("echo"), config, folder / "state", records=False)


async def test_the_forwarder_starts_while_the_container_is_still_getting_ready(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        messages = [it async for it in runner(tmp_path, network="gateway").execute(OPTIONS)]

    assert not [it for it in messages if isinstance(it, ErrorMessage)]
    assert (tmp_path / "prompt").read_text() == "Hello"


def test_nothing_starts_so_soon_that_has_the_agents_uid(tmp_path: Path) -> None:
    plan = runner(tmp_path, network="gateway").plan(OPTIONS)
    sends = attrs.evolve(plan, mounted=attrs.evolve(plan.mounted, sent={"here": "there"}))

    assert plan.gate == guest.up_line(plan.run_id)
    assert sends.gate == attrs.evolve(plan, gateway=None).gate == guest.ready_line(plan.run_id)
    assert f"--user={plan.user}" in sends.send_in("x")
    assert f"--user={plan.user.for_pid1}" in plan.forward_in("x")
    assert plan.user.for_pid1 != plan.user
