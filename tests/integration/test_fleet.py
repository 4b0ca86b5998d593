"""A Ray cluster of two nodes on this machine, one with Docker and one with Podman: what it leaves, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import anyio
import attrs
import psutil
import pytest

from container_runner import Agent, ClaudeRuntime, ContainerConfig, ContainerRunner, ExecuteOptions, Job, ResultFile
from container_runner.fleet import ray
from container_runner.fleet.batch import Watch, run_batch
from container_runner.fleet.ray import RayFleet
from container_runner.stream import beat
from tests.integration.engines import Engines, RealEngine
from tests.integration.fixtures import skipped_if_unavailable
from tests.integration.runs import COMMAND, on

pytestmark = [on("docker"), pytest.mark.ray, pytest.mark.timeout(300)]

WAIT = 100

GONE = 5.0
"""Seconds in which the containers of a node that is killed are gone; 1.0 to 1.3 were seen."""


@attrs.define
class Nodes:
    """The cluster, and the engine of each of its nodes: the first has Docker, the others Podman."""

    cluster: Any
    engines: dict[str, RealEngine]
    others: list[Any] = attrs.field(factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def have(self, others: int) -> None:
        """Let there be so many nodes with Podman."""
        while len(self.others) < others:
            self.others.append(self.cluster.add_node(**arguments(self.engines["podman"])))

    def drop(self) -> None:
        """Take those that a test has killed out of the cluster."""
        for node in self.others:
            self.cluster.remove_node(node, allow_graceful=False)
        self.others.clear()

    def containers(self) -> dict[str, list[str]]:
        return {name: engine.containers() for name, engine in self.engines.items()}

    def are_gone(self) -> bool:
        return not any(self.containers().values())


def raylet_of(node: Any) -> psutil.Process:
    (info,) = node.all_processes["raylet"]
    return psutil.Process(info.process.pid)


def arguments(engine: RealEngine) -> dict[str, Any]:
    variables = {"CONTAINER_RUNNER_ENGINE": engine.binary}
    return {"num_cpus": 1, "object_store_memory": 80 * 1024**2, "include_dashboard": False, "env_vars": variables}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def cluster(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with skipped_if_unavailable():
        both = {name: engines.get(name) for name in ("docker", "podman")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        made = Cluster(initialize_head=True, head_node_args=arguments(both["docker"]))
        try:
            yield Nodes(made, both)
        finally:
            made.shutdown()


@pytest.fixture
def nodes(engine: RealEngine, cluster: Nodes) -> Nodes:
    assert {each.images.tiny for each in cluster.engines.values()} == {engine.images.tiny}
    cluster.have(1)
    return cluster


def jobs_of(
    nodes: Nodes, folder: Path, *prompts: str, mode: Literal["carried", "ro"] = "carried", **agent: Any
) -> list[Job]:
    image = nodes.engines["docker"].images.tiny
    config = ContainerConfig(image=image, credentials="none", workspace_mode=mode)
    runner = ContainerRunner(ClaudeRuntime(), config, folder / "state")
    options = [ExecuteOptions(prompt=prompt, agent=Agent(name="a", **agent), grace=0) for prompt in prompts]
    return [Job(id=str(number), runner=runner, options=each) for number, each in enumerate(options)]


async def until(is_so: Callable[[], object]) -> None:
    with anyio.fail_after(WAIT):
        while not await anyio.to_thread.run_sync(is_so):
            await anyio.sleep(0.05)


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
    return subprocess.run(["git", *names, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


async def test_a_carried_folder_goes_to_both_nodes_and_its_work_comes_back(nodes: Nodes, tmp_path: Path) -> None:
    (work := tmp_path / "work").mkdir()
    (work / "old.txt").write_text("old\n")
    git(work, "init", "-q", "-b", "main")
    git(work, "add", "--all")
    git(work, "commit", "-q", "-m", "First")
    (work / "untracked.txt").write_text("mine\n")
    prompts = [f"sh cat old.txt untracked.txt >made{number}.txt; sleep 1" for number in range(4)]
    jobs = [attrs.evolve(job, branch=f"agent/{job.id}") for job in jobs_of(nodes, tmp_path, *prompts, workspace=work)]

    done = await run_batch(jobs, on=RayFleet(nodes.address), at_once=1)

    assert [(each.kind, each.message, each.branch) for each in done] == [(None, None, f"agent/{n}") for n in range(4)]
    assert len({each.node for each in done}) == 2
    for number in range(4):
        assert git(work, "show", f"agent/{number}:made{number}.txt") == "old\nmine\n"
    assert sorted(path.name for path in work.iterdir()) == [".git", "old.txt", "untracked.txt"]
    assert nodes.are_gone()


async def test_doctor_asks_every_node(nodes: Nodes, tmp_path: Path) -> None:
    """It prints what they say, and nothing of what Ray itself prints."""
    image = nodes.engines["docker"].images.tiny
    command = [COMMAND, "doctor", f"--on=ray:{nodes.address}", "--credentials=none", f"--state-dir={tmp_path}/state"]

    done = await anyio.run_process([*command, f"--image={image}"], check=False)

    *lines, _, end = done.stdout.decode().splitlines()
    assert (done.returncode, end, done.stderr) == (0, "A batch runs on every node.", b"")
    assert sorted(line.split()[2] for line in lines) == ["docker", "podman"]
    assert all(line.startswith("✓ ") and ", image " in line for line in lines), lines


async def test_a_driver_that_is_killed_leaves_nothing_and_the_next_runs_the_rest(nodes: Nodes, tmp_path: Path) -> None:
    (file := tmp_path / "jobs.jsonl").write_text('"hello"\n"sleep 1000"\n"sleep 1000"\n')
    (work := tmp_path / "work").mkdir()
    results = tmp_path / "jobs.results.jsonl"
    command = [COMMAND, "batch", str(file), f"--on=ray:{nodes.address}", "--jobs=2", f"--workspace={work}"]
    command += [
        "--workspace-mode=ro",
        f"--image={nodes.engines['docker'].images.tiny}",
        "--credentials=none",
        f"--state-dir={tmp_path}/state",
    ]
    driver = await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=None)
    try:
        await until(lambda: results.exists() and results.read_bytes() and not nodes.are_gone())
    finally:
        driver.kill()
        await driver.aclose()
    await until(nodes.are_gone)

    file.write_text('"hello"\n"hello"\n"hello"\n')
    again = await anyio.run_process(command, check=False)

    assert b"3 of 3 jobs succeeded, 1 done before" in again.stderr, again.stderr
    assert len(results.read_text().splitlines()) == 3


@pytest.mark.flaky(reruns=1)  # for a clock of a busy machine
async def test_nodes_that_die_lose_their_containers_and_their_jobs_run_elsewhere(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one the raylet dies alone, whose actor would work on, then all processes of another."""
    capsys.readouterr()
    monkeypatch.setattr(beat, "BEAT", 1.0)
    monkeypatch.setattr(beat, "PATIENCE", 12)  # the time until another node may have the shared folder,
    monkeypatch.setattr(ray, "_FENCE", 3.0)  # with this
    nodes.have(2)
    (go := tmp_path / "go").mkdir(mode=0o755)
    jobs = jobs_of(nodes, tmp_path, "hello", *["sh until [ -e on ]; do sleep 0.2; done"] * 6, mode="ro", workspace=go)
    ended: list[str] = []
    at_work: list[tuple[str, float]] = []
    killed: list[float] = []
    gone: dict[str, float] = {}
    watch = Watch(
        at_work=lambda job: at_work.append((job.id, time.monotonic())), ended=lambda job, _: ended.append(job.id)
    )
    podman = nodes.engines["podman"]

    async def kill(what: str, left: int, *victims: psutil.Process) -> None:
        looked = 0.0

        def are_gone() -> bool:
            nonlocal looked
            looked = time.monotonic()  # a look that takes long on a busy machine is no container that stays long
            return len(podman.containers()) == left

        killed.append(time.monotonic())
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        await until(are_gone)
        gone[what] = looked - killed[-1]
        print(f"{what}: containers gone after {gone[what]:.2f} s", file=sys.stderr)

    with ResultFile(tmp_path / "results") as results:
        async with anyio.create_task_group() as tasks:

            async def kill_both() -> None:
                await until(lambda: len({id_ for id_, _ in at_work}) == 7 and ended == ["0"])
                assert len(podman.containers()) == 4
                one, other = (raylet_of(node) for node in nodes.others)
                await kill("raylet", 2, one)
                await kill("node", 0, other, *other.children(recursive=True))
                (go / "on").touch()

            tasks.start_soon(kill_both)
            try:
                done = await run_batch(jobs, on=RayFleet(nodes.address), at_once=2, results=results, watch=watch)
            finally:
                nodes.drop()

    assert sorted(ended) == ["0", "1", "2", "3", "4", "5", "6"]
    assert len((tmp_path / "results").read_text().splitlines()) == 7
    again = [id_ for id_, _ in at_work[7:]]
    assert len({*again}) == len(again) == 4
    assert {each.id: each.attempts for each in done} == {str(n): 1 + (str(n) in again) for n in range(7)}
    assert len({each.node for each in done if each.id != "0"}) == 1
    assert at_work[7][1] - killed[0] >= 3, "the fence"
    assert all(seconds < GONE for seconds in gone.values()), gone
    assert capsys.readouterr().out == "", "Ray has printed into what may be JSON"
    assert nodes.are_gone()
