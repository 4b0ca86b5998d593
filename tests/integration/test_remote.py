"""An engine of another machine, played by a Podman service that has folders of its own behind the same paths."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from container_runner import ClaudeRuntime, ContainerRunner, Engine, ErrorMessage, Message, ResultMessage, RunResult
from container_runner.box.environment import host_environment
from container_runner.engine.conmon import YOUNGEST
from container_runner.engine.manager import Containers
from tests.integration.engines import LABEL, processes_of, wait_until, write_program
from tests.integration.images import Images
from tests.integration.remote import Line, at_work, be_impatient, come_home, cut_off
from tests.integration.runs import Box, on

pytestmark = [on("podman"), pytest.mark.timeout(180)]


@contextlib.contextmanager
def elsewhere(box: Box, name: str = "other", *, named: bool = False) -> Iterator[str]:
    """A client, as a program, of a Podman whose graph root has the path of *box*'s own, and other contents.

    Args:
        name: another one for another such Podman, in *box*'s folder.
        named: whether it is the default connection of the client's configuration, and not named by an address.
    """
    root = box.engine.run("info", "--format={{.Store.GraphRoot}}").stdout.strip()
    other, socket, client = (box.folder / f"{name}{kind}" for kind in ("", ".socket", ".client"))
    other.mkdir()
    Path(root).mkdir(parents=True, exist_ok=True)
    places = shlex.join([str(other), root])
    box.state.mkdir(exist_ok=True)
    hide = " && ".join(f"mount -t tmpfs tmpfs {shlex.quote(str(path))}" for path in (box.state, box.workspace))
    serve = f"mount --bind {places} && {hide} && exec {box.engine.binary} system service --time=0 unix://{socket}"
    # In a session of its own; with its pipe's end nobody needs it any more.
    service = subprocess.Popen(["setpriv", "--pdeathsig=TERM", "unshare", "--mount", "sh", "-c", serve])
    try:
        wait_until(socket.exists, seconds=30)
        address = f"unix://{socket}"
        conf = f'[engine]\nactive_service = "there"\n[engine.service_destinations.there]\nuri = "{address}"\n'
        (box.folder / "connections.conf").write_text(conf)
        named_by = f"CONTAINERS_CONF={box.folder}/connections.conf podman --remote"
        write_program(client, f"exec env {named_by}" if named else f"exec podman --remote --url={address}")
        yield str(client)
    finally:
        service.terminate()
        service.wait(30)
        for pid, line in processes_of(Path(root)).items():  # a service keeps an exec's monitor for five minutes
            if "--exit-delay" in line:
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("named", [False, True], ids=["address", "connection"])
def test_healthy_agents_of_this_machine_outlive_a_look_at_another_ones(box: Box, named: bool) -> None:
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

    with elsewhere(box, named=named) as remote:
        engine, seen = anyio.run(main, remote)

    assert engine.dialect.name == "podman"
    assert engine.endpoint == "podman's default connection"
    assert engine.graph_root == ""
    assert isinstance(seen[-1], ResultMessage), seen[-1]


def runner_at(box: Box, remote: str, **fields: Any) -> ContainerRunner:
    config = box.config(engine=remote, image=Images(remote).tiny, **fields)
    return ContainerRunner(ClaudeRuntime(), config, box.state)


def containers(remote: str) -> list[str]:
    """The ids of a remote's containers of runs."""
    command = [remote, "ps", "--all", "--quiet", f"--filter=label={LABEL}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_of_two_remotes_neither_ends_the_agents_of_the_other(box: Box) -> None:
    """Both have their containers at the same path of this machine, and their monitors among its processes."""

    async def main(*runners: ContainerRunner) -> list[Message]:
        at_once = anyio.Event()
        seen: list[list[Message]] = []

        async def work(runner: ContainerRunner) -> None:
            async with contextlib.aclosing(runner.execute(box.options("sleep 6"))) as messages:
                seen.append(own := [await anext(messages)])
                if len(seen) == len(runners):
                    at_once.set()
                await at_once.wait()
                await anyio.sleep(YOUNGEST + 0.5)
                await (await runner.manager()).prune()
                own += [message async for message in messages]

        async with anyio.create_task_group() as tasks:
            for runner in runners:
                tasks.start_soon(work, runner)
        return [own[-1] for own in seen]

    with elsewhere(box) as one, elsewhere(box, "another") as two:
        ends = anyio.run(main, *(runner_at(box, remote, workspace_mode="carried") for remote in (one, two)))
        assert containers(one) == containers(two) == []

    assert [type(end) for end in ends] == [ResultMessage, ResultMessage], ends


def test_runs_over_a_remote_work_on_their_own_copy_and_leave_nothing(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that find out at the same time, one that goes on with a session, one cancelled, one killed, one cut off."""
    (box.workspace / "file.txt").write_text("mine\n")
    sessions = "/container-runner/sessions/projects/-workspace"

    async def both(runner: ContainerRunner, prompt: str) -> list[RunResult]:
        async def run(each: str) -> None:
            results.append(await runner.run(box.options(each)))

        results: list[RunResult] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, prompt)
            tasks.start_soon(run, f"{prompt}; sleep 2")
        return results

    async def cancel(runner: ContainerRunner, remote: str) -> None:
        async with contextlib.aclosing(runner.execute(box.options("sleep 60"))) as messages:
            await anext(messages)
            assert len(containers(remote)) == 1

    with elsewhere(box) as remote:
        runner = runner_at(box, remote)
        first = f"sh cat file.txt; echo new > new.txt; mkdir -p {sessions}; echo first > {sessions}/s.jsonl"
        results = anyio.run(both, runner, first, backend="trio")
        again = box.options(f"sh cat {sessions}/s.jsonl", resume="s")
        resumed = anyio.run(runner.run, again, backend="trio")
        assert containers(remote) == []
        anyio.run(cancel, runner, remote, backend="trio")
        assert containers(remote) == []
        ours = {"engine": remote, "image": runner.config.image, "network": "none", "credentials": "none"}
        with at_work(ours, box.folder, "trio") as victim:
            victim.kill()
            victim.wait()
            wait_until(lambda: containers(remote) == [], seconds=30)
        assert containers(remote) == []

        be_impatient(monkeypatch)
        by_line = str(box.folder / "line.client")
        with contextlib.closing(Line(str(box.folder / "other.socket"))) as line:
            write_program(Path(by_line), f"exec podman --remote --url=tcp://127.0.0.1:{line.port}")
            cut = runner.evolved(config=attrs.evolve(runner.config, engine=by_line))
            error = anyio.run(cut_off, cut, box.options("sh echo done > work.txt; sleep 300"), line, backend="trio")
            wait_until(lambda: containers(remote) == [], seconds=60)
            assert containers(remote) == []
            line.mend()
            engine = anyio.run(Engine.probe, by_line, host_environment())
            assert anyio.run(come_home, engine, box.state, backend="trio") == [b"work.txt"]

    assert error.kind == "engine_unreachable"
    for each in results:
        assert "mine" in (each.text or "")
        assert each.changes is not None
        assert [file.path for file in each.changes.files] == [b"new.txt"]
        assert each.record is not None
        assert each.record.summary.endpoint
    assert (resumed.text or "").split()[-1:] == ["first"]
    assert [path.name for path in box.workspace.iterdir()] == ["file.txt"]
    assert results[0].changes is not None
    anyio.run(results[0].changes.apply)
    assert {path.name: path.read_text() for path in box.workspace.iterdir()} == {
        "file.txt": "mine\n",
        "new.txt": "new\n",
    }
