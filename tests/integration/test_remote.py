"""An engine of another machine, played by a Podman service that has folders of its own behind the same paths."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from container_runner import ContainerRunner, Engine, ErrorMessage, ResultMessage
from container_runner.box.environment import host_environment
from container_runner.engine.conmon import YOUNGEST
from container_runner.engine.manager import Containers
from tests.integration.engines import wait_until, write_program
from tests.integration.runs import Box, on

pytestmark = [on("podman"), pytest.mark.timeout(180)]


@contextlib.contextmanager
def elsewhere(box: Box) -> Iterator[str]:
    """A client, as a program, of a Podman whose graph root has the path of *box*'s own, and other contents."""
    root = box.engine.run("info", "--format={{.Store.GraphRoot}}").stdout.strip()
    other, socket, client = (box.folder / name for name in ("other", "socket", "remote-podman"))
    other.mkdir()
    Path(root).mkdir(parents=True, exist_ok=True)
    places = shlex.join([str(other), root])
    serve = f"mount --bind {places} && exec {box.engine.binary} system service --time=0 unix://{socket}"
    # In a session of its own; with its pipe's end nobody needs it any more.
    service = subprocess.Popen(["setpriv", "--pdeathsig=TERM", "unshare", "--mount", "sh", "-c", serve])
    try:
        wait_until(socket.exists, seconds=30)
        write_program(client, f"exec podman --remote --url=unix://{socket}")
        yield str(client)
    finally:
        service.terminate()
        service.wait(30)


def test_healthy_agents_of_this_machine_outlive_a_look_at_another_ones(box: Box) -> None:
    async def main(remote: str) -> tuple[Engine, list[object]]:
        runner, options = box.runner(), box.options("sleep 6")
        seen: list[object] = []
        async with contextlib.aclosing(runner.execute(options)) as messages:
            seen.append(await anext(messages))
            await anyio.sleep(YOUNGEST + 0.5)
            engine = await Engine.probe(remote, host_environment())
            await Containers(engine, box.state / "other").prune()
            # A first run looks there as well, even one that fails.
            there = ContainerRunner(runner.runtime, box.config(engine=remote, pull="never"), box.state / "other")
            failed = [message async for message in there.execute(options)]
            assert isinstance(failed[-1], ErrorMessage), failed
            seen += [message async for message in messages]
        return engine, seen

    with elsewhere(box) as remote:
        engine, seen = anyio.run(main, remote)

    assert engine.dialect.name == "podman"
    assert isinstance(seen[-1], ResultMessage), seen[-1]
