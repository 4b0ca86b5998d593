"""Two nodes of a real Ray cluster on this machine, each with an engine that is played."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
import psutil
import pytest
from anyio.abc import SocketAttribute, SocketStream

from container_runner.agents import ClaudeRuntime
from container_runner.config.container import ContainerConfig
from container_runner.errors import ConfigError, EngineUnreachableError, ImageNotFoundError
from container_runner.fleet import ray
from container_runner.fleet.batch import Watch, run_batch
from container_runner.fleet.heartbeat import Heartbeat
from container_runner.fleet.job import Job
from container_runner.fleet.ray import RayFleet, check
from container_runner.fleet.ray_node import Report, Spec
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.session.tools import tool
from container_runner.stream import beat
from container_runner.stream.messages import AssistantMessage, Message
from tests import played_engine

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SECRET = "s3cr3t-of-the-node-4711"

BREAKABLE = """\
#!/bin/sh
case $1 in run|create) [ ! -e '{folder}/broken' ] || {{ echo >>'{folder}/broken'; echo 'docker: Error response from daemon: invalid mount config for type "bind": bind source path does not exist: /x.' >&2; exit 125; }} ;; esac
exec '{folder}/playing' "$@"
"""  # noqa: E501  a program


@attrs.define
class Nodes:
    """A cluster of two nodes, and the folders of their engines."""

    folder: Path
    cluster: Any

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def engine(self, name: str) -> Path:
        return self.folder / name


def arguments(folder: Path, name: str) -> dict[str, Any]:
    variables = {"CONTAINER_RUNNER_ENGINE": str(folder / name / "docker"), "NODE_SECRET": SECRET}
    return {"num_cpus": 1, "object_store_memory": 80 * 1024**2, "include_dashboard": False, "env_vars": variables}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("ray")
    for name in "ab":
        program = played_engine.write(folder / name)
        program.rename(folder / name / "playing")
        program.write_text(BREAKABLE.format(folder=folder / name))
        program.chmod(0o755)
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args=arguments(folder, "a"))
        try:
            cluster.add_node(**arguments(folder, "b"))
            yield Nodes(folder, cluster)
        finally:
            cluster.shutdown()


@pytest.fixture
def runner(tmp_path: Path) -> ContainerRunner:
    config = ContainerConfig(image="some/image", credentials="none", secrets=("NODE_SECRET",))
    return ContainerRunner(ClaudeRuntime(), config, tmp_path / "state")


def job(runner: ContainerRunner, id_: str, prompt: str, **options: Any) -> Job:
    return Job(id=id_, runner=runner, options=ExecuteOptions(prompt=prompt, agent=Agent(name="a"), **options))


def at_work(mark: str) -> list[psutil.Process]:
    """The agents' processes that have *mark* in their arguments."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "sleep" and mark in process.cmdline():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


async def until(is_so: Callable[[], object], seconds: float = 100) -> None:
    with anyio.fail_after(seconds):
        while not is_so():
            await anyio.sleep(0.05)


def read_when_it_stands_still(path: Path) -> str:
    before, now = None, path.read_text()
    while now != before:
        time.sleep(2)
        before, now = now, path.read_text()
    return now


async def test_both_nodes_work_with_their_own_engines_and_secrets(nodes: Nodes, runner: ContainerRunner) -> None:
    jobs = [job(runner, str(number), "sleep 1") for number in range(6)]
    at_start: list[str] = []
    watch = Watch(at_work=lambda job: at_start.append(job.id))

    done = await run_batch(jobs, on=RayFleet(nodes.address), at_once=2, watch=watch)

    assert all(each.succeeded for each in done)
    assert len({each.node for each in done}) == 2
    assert sorted(at_start) == [job.id for job in jobs]
    for name in "ab":
        variables = [call["variables"] for call in played_engine.calls(nodes.engine(name)) if "variables" in call]
        assert variables
        assert all(each["NODE_SECRET"] == SECRET for each in variables)
    assert all(each.run and each.attempts == 1 for each in done)


async def test_what_ray_keeps_has_no_secret_and_no_prompt(nodes: Nodes, runner: ContainerRunner) -> None:
    prompt = "exit 0\nprompt-of-the-job-0815 " + "x" * 400_000
    (done,) = await run_batch([job(runner, "1", prompt)], on=RayFleet(nodes.address))
    assert done.was_run

    session = Path(nodes.cluster.head_node.get_session_dir_path())
    seen: list[Path] = []
    for path in [*session.rglob("*"), *Path("/dev/shm").glob("plasma*")]:
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            assert b"prompt-of-the-job-0815" not in content, path
            seen += [path] if b"NodeRunner" in content else []
    assert seen, "what Ray writes of our actors is elsewhere"


async def test_a_batch_that_a_signal_ends_leaves_no_agent(nodes: Nodes, runner: ContainerRunner) -> None:
    """SIGTERM is the caller's to handle: Ray's own handler would exit here."""
    jobs = [job(runner, str(number), "sleep 4711.1") for number in range(4)]
    started: list[str] = []
    watch = Watch(at_work=lambda job: started.append(job.id))

    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        ours = signal.getsignal(signal.SIGTERM)
        async with anyio.create_task_group() as tasks:

            async def work() -> None:
                await run_batch(jobs, on=RayFleet(nodes.address), at_once=2, watch=watch)

            tasks.start_soon(work)
            await until(lambda: len(started) == 4 and len(at_work("4711.1")) == 4)
            assert signal.getsignal(signal.SIGTERM) is ours
            os.kill(os.getpid(), signal.SIGTERM)
            async for _ in signals:
                tasks.cancel_scope.cancel()
                break

    assert at_work("4711.1") == []


async def test_a_reader_that_is_slow_holds_up_the_agent(nodes: Nodes, runner: ContainerRunner) -> None:
    class Enough(Exception):  # noqa: N818  it is no error
        pass

    read = 0
    counted = nodes.folder / "written"
    floods = "\n".join(f"flood 100 20000\nsh echo {number} >>{counted}" for number in range(30))
    prompt = f"sh echo begun >{counted}\n{floods}"

    def said(_: Job, message: Message) -> None:
        nonlocal read
        if isinstance(message, AssistantMessage):
            read += 1
            if read == 10:
                raise Enough(read_when_it_stands_still(counted))

    def is_held_up(enough: Enough) -> bool:
        first, *more = str(enough).split()
        return first == "begun" and len(more) < 30

    with pytest.RaisesGroup(pytest.RaisesExc(Enough, check=is_held_up)):
        await run_batch([job(runner, "1", prompt)], on=RayFleet(nodes.address), watch=Watch(said=said))


async def test_a_broken_node_is_given_up_and_its_jobs_run_elsewhere(nodes: Nodes, runner: ContainerRunner) -> None:
    broken = nodes.engine("b") / "broken"
    broken.touch()
    until_b_is_given_up = f"sh until [ ! -e '{broken}' ] || [ $(wc -l <'{broken}') -ge 3 ]; do sleep 0.1; done"
    jobs = [job(runner, str(number), until_b_is_given_up) for number in range(10)]
    try:
        done = await run_batch(jobs, on=RayFleet(nodes.address), at_once=1)
    finally:
        broken.unlink()

    assert all(each.succeeded for each in done), done
    assert len({each.node for each in done}) == 1
    assert sum(each.attempts for each in done) == 13


async def test_what_every_node_says_of_itself(nodes: Nodes, runner: ContainerRunner) -> None:
    found = await RayFleet(nodes.address).examine(job(runner, "1", "hello"))

    assert len(found) == 2
    for report in found.values():
        assert isinstance(report, Report)
        assert (report.error, report.unset) == (None, ())
        assert report.engine.startswith("docker ")
        assert all(report.images.values())


async def test_a_node_that_lacks_a_secret_is_told_before_the_first_job(nodes: Nodes, tmp_path: Path) -> None:
    config = ContainerConfig(image="some/image", credentials="none", secrets=("NOT_THERE",))
    lacking = ContainerRunner(ClaudeRuntime(), config, tmp_path / "state")

    with pytest.raises(ConfigError, match=r"These nodes have no such variables: .* lacks NOT_THERE"):
        await run_batch([job(lacking, "1", "hello")], on=RayFleet(nodes.address))


SETTINGS = bytes.fromhex("000018040000000000000400400000000500400000000600004000fe0300000001000004080000000000003f0001")
SETTINGS += bytes.fromhex("00000004010000000000000408000000000000000000")
NO_SUCH_METHOD = (
    b"\x88@\x0ccontent-type\x10application/grpc@\x0bgrpc-status\x0212\0\x0cgrpc-message\x11Method not found!"
)
CLIENT = SETTINGS + b"\0\0P\x01\x05\0\0\0\x01" + NO_SUCH_METHOD
"""What the port of Ray Client answers, of Ray 2.60."""

SILENCE = "Nothing came from there in 0.5 seconds."
NO_HEAD = "What answers there is no head of a Ray cluster"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "attempts failed"),
        (b"", SILENCE),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", f"{NO_HEAD}."),
        (SETTINGS, SILENCE),
        (SETTINGS + b"\0\0\x08\x07" + bytes(13), f"{NO_HEAD}."),
        (CLIENT, f"{NO_HEAD}, but speaks as the port of Ray Client."),
    ],
    ids=["nobody", "silent", "http", "settings-alone", "goes-away", "client"],
)
async def test_a_cluster_that_is_not_there_is_told(
    answer: bytes | None, why: str, runner: ContainerRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within seconds: Ray itself would try for half a minute, or for minutes."""
    pytest.importorskip("ray")
    if why == SILENCE:
        monkeypatch.setattr(ray, "_CONNECT", 0.5)

    class Joined(Exception):  # noqa: N818  it is no error
        pass

    def join(**_: object) -> None:
        raise Joined

    monkeypatch.setattr(ray._ray(), "init", join)

    async def serve(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer or b"")
            await anyio.sleep_forever()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        port = listener.extra(SocketAttribute.local_port) if answer is not None else 1
        tasks.start_soon(listener.serve, serve)
        with pytest.raises(EngineUnreachableError) as caught:
            await run_batch([job(runner, "1", "hello")], on=RayFleet(f"127.0.0.1:{port}"))
        tasks.cancel_scope.cancel()

    assert caught.value.message == f"No Ray cluster answers at 127.0.0.1:{port}."
    assert "`ray start --head --port` was given, and not 10001, which is Ray Client's" in caught.value.next_step
    assert caught.value.stderr == why or (answer is None and why in (caught.value.stderr or ""))


async def test_functions_of_this_program_are_refused(tmp_path: Path) -> None:
    @tool
    def look(number: str) -> str:
        """Look it up."""
        return number

    with_tools = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="some/image"), tmp_path, tools=[look])

    with pytest.raises(ConfigError, match="can not be called from other machines"):
        await run_batch([job(with_tools, "1", "hello")], on=RayFleet())


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "", "head:", ":6379"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"Ray Client, which can not stream" if "//" in address else "HOST:PORT"):
        RayFleet(address)


def report(**fields: Any) -> Report:
    from container_runner import __version__

    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    usual = {"host": "h", "version": __version__, "python": python, "engine": "docker 1", "images": {"i": "1"}}
    return Report(**{**usual, "unset": (), "folders": {"/w": (1, 2)}, "cpus": 1, **fields})


@pytest.mark.parametrize(
    ("fields", "error", "told"),
    [
        ({"version": "0.0.1"}, ConfigError, "on must be nodes with container_runner"),
        ({"python": "3.0"}, ConfigError, "on must be nodes with container_runner"),
        ({"images": {"i": None}}, ImageNotFoundError, "The image i is not on 1 of 2 nodes: b"),
        ({"unset": ("KEY",)}, ConfigError, "b lacks KEY"),
        ({"folders": {"/w": None}}, ConfigError, "workspace must be a folder that all nodes share"),
        ({"folders": {"/w": (3, 2)}}, ConfigError, "workspace must be a folder that all nodes share"),
    ],
)
def test_nodes_that_differ_are_refused(fields: dict[str, Any], error: type[Exception], told: str) -> None:
    config = ContainerConfig(image="i", credentials="none")
    with pytest.raises(error, match=told):
        check({"a": report(), "b": report(**fields)}, [Spec(None, config, Path(), True)], ["/w"])
    check({"a": report(), "b": report()}, [Spec(None, config, Path(), True)], ["/w"])


async def test_a_node_that_hears_nothing_of_us_ends_its_agents(
    nodes: Nodes, runner: ContainerRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beat, "BEAT", 0.5)
    monkeypatch.setattr(beat, "PATIENCE", 3)
    jobs = [job(runner, str(number), f"sh until [ -e '{nodes.folder}/on' ]; do sleep 0.2; done") for number in "123"]
    started: list[str] = []
    beats: list[Heartbeat] = []
    watch = Watch(at_work=lambda job: started.append(job.id))

    class Seen(Heartbeat):
        def __init__(self, actors: Mapping[str, Any]) -> None:
            super().__init__(actors)
            beats.append(self)

    monkeypatch.setattr(ray, "Heartbeat", Seen)

    async with anyio.create_task_group() as tasks:

        async def cut_off() -> None:
            await until(lambda: len(started) == 3)
            beats[0].give_up(next(iter(beats[0]._actors)))
            await until(lambda: len(started) == 4)
            (nodes.folder / "on").touch()

        tasks.start_soon(cut_off)
        done = await run_batch(jobs, on=RayFleet(nodes.address), at_once=2, watch=watch)

    assert [each.kind for each in done] == [None] * 3
    assert sorted(each.attempts for each in done) == [1, 2, 2]
    assert len({each.node for each in done}) == 1


def test_trio_is_refused(runner: ContainerRunner) -> None:
    with pytest.raises(ConfigError, match="Ray works with asyncio alone"):
        anyio.run(lambda: run_batch([job(runner, "1", "hello")], on=RayFleet()), backend="trio")
