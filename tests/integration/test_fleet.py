"""A Ray cluster of two nodes on this machine, one with Docker and one with Podman: what it leaves, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import anyio
import attrs
import psutil
import pytest

from container_runner import Agent, ClaudeRuntime, ContainerConfig, ContainerRunner, ExecuteOptions, Job, ResultFile
from container_runner.fleet.batch import Watch, run_batch
from container_runner.fleet.ray import RayFleet
from container_runner.stream import beat
from tests.integration.engines import Engines, RealEngine
from tests.integration.fixtures import skipped_if_unavailable
from tests.integration.runs import COMMAND, on

pytestmark = [on("docker"), pytest.mark.ray, pytest.mark.timeout(300)]

WAIT = 100


@attrs.define
class Nodes:
    """The cluster, and the engine of each of its nodes; the last one is there to be killed."""

    cluster: Any
    engines: dict[str, RealEngine]
    last: Any = None

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> None:
        self.last = self.cluster.add_node(**arguments(self.engines["podman"]))

    def raylet(self) -> psutil.Process:
        (info,) = self.last.all_processes["raylet"]
        return psutil.Process(info.process.pid)

    def containers(self) -> dict[str, list[str]]:
        return {name: engine.containers() for name, engine in self.engines.items()}

    def are_gone(self) -> bool:
        return not any(self.containers().values())


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
            nodes = Nodes(made, both)
            nodes.add()
            yield nodes
        finally:
            made.shutdown()


@pytest.fixture
def nodes(engine: RealEngine, cluster: Nodes) -> Nodes:
    assert {each.images.tiny for each in cluster.engines.values()} == {engine.images.tiny}
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


@pytest.mark.parametrize("how", ["node", "raylet"])
async def test_a_node_that_dies_loses_its_containers_and_its_jobs_run_elsewhere(
    how: str, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its processes at once, or its raylet alone, whose actor would work on."""
    monkeypatch.setattr(beat, "BEAT", 1.0)
    monkeypatch.setattr(beat, "PATIENCE", 12)  # the time until another node may have the shared folder
    (go := tmp_path / "go").mkdir(mode=0o755)
    jobs = jobs_of(nodes, tmp_path, "hello", *["sh until [ -e on ]; do sleep 0.2; done"] * 4, mode="ro", workspace=go)
    ended: list[str] = []
    at_work: list[str] = []
    watch = Watch(at_work=lambda job: at_work.append(job.id), ended=lambda job, _: ended.append(job.id))

    with ResultFile(tmp_path / "results") as results:
        async with anyio.create_task_group() as tasks:

            async def kill() -> None:
                await until(lambda: len({*at_work}) == 5 and ended == ["0"])
                raylet = nodes.raylet()
                victims = [raylet, *(raylet.children(recursive=True) if how == "node" else [])]
                for victim in victims:
                    victim.send_signal(signal.SIGKILL)
                began = anyio.current_time()
                await until(lambda: not nodes.engines["podman"].containers())
                print(f"{how}: containers gone after {anyio.current_time() - began:.2f} s", file=sys.stderr)
                (go / "on").touch()

            tasks.start_soon(kill)
            done = await run_batch(jobs, on=RayFleet(nodes.address), at_once=3, results=results, watch=watch)
    nodes.cluster.remove_node(nodes.last, allow_graceful=False)
    nodes.add()

    assert sorted(ended) == ["0", "1", "2", "3", "4"]
    assert len((tmp_path / "results").read_text().splitlines()) == 5
    assert at_work.count("0") == 1
    assert len(at_work) > 5
    assert {each.attempts for each in done} == {1, 2}
    assert len({each.node for each in done if each.id != "0"}) == 1
    assert nodes.are_gone()


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
