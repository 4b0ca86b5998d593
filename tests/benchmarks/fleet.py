"""A batch on a Ray cluster of two nodes, against two `run_batch` processes with the same engines.

    python -m tests.benchmarks.fleet [--jobs=200] [--at-once=2] [--turns=3]

One node has Docker, the other Podman, each with *at-once* jobs at a time; the two processes have half of the jobs each.
What is timed is the whole process, Python's start and the way into the cluster among it. In CI it is not run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from container_runner import Agent, ClaudeRuntime, ContainerConfig, ContainerRunner, ExecuteOptions, Job
from container_runner.fleet.batch import run_batch
from container_runner.fleet.ray import RayFleet
from tests.benchmarks.measure import timed
from tests.integration.engines import Engines, RealEngine

TARGET = 0.9
"""The part of the two processes' throughput that the fleet has at least."""

NAMES = ("docker", "podman")


async def child(engine: str, image: str, jobs: int, at_once: int, folder: str) -> None:
    """Run a batch: on a fleet if *engine* is the address of one, "HOST:PORT", else on the engine."""
    on = RayFleet(engine) if ":" in engine else None
    config = ContainerConfig(image=image, credentials="none", network="none", engine="auto" if on else engine)
    runner = ContainerRunner(ClaudeRuntime(), config, Path(folder))
    options = ExecuteOptions(prompt="hello", agent=Agent(name="a"))
    all_jobs = [Job(id=str(number), runner=runner, options=options) for number in range(jobs)]
    done = await run_batch(all_jobs, on=on, at_once=at_once)
    failed = [each for each in done if not each.succeeded]
    if failed or len(done) < jobs:
        sys.exit(f"{len(done)} of {jobs} jobs have ended, {len(failed)} failed: {failed[:1]}")


def batches(image: str, jobs: int, at_once: int, folder: Path, *engines: str) -> Callable[[], None]:
    """A process for each of the engines, each of which has its part of the jobs."""

    def run() -> None:
        part = jobs // len(engines)
        orders = [[engine, image, str(part), str(at_once), str(folder / f"{n}")] for n, engine in enumerate(engines)]
        module = [sys.executable, "-m", "tests.benchmarks.fleet", "child"]
        processes = [subprocess.Popen([*module, *order]) for order in orders]
        codes = [process.wait() for process in processes]
        if any(codes):
            sys.exit("A batch has failed.")

    return run


def start_cluster(engines: dict[str, RealEngine]) -> Any:
    """A node of Ray's for each of the engines, the first of which is the head."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    arguments = [
        {"num_cpus": 1, "include_dashboard": False, "env_vars": {"CONTAINER_RUNNER_ENGINE": engine.binary}}
        for engine in engines.values()
    ]
    cluster = Cluster(initialize_head=True, head_node_args=arguments[0])
    for each in arguments[1:]:
        cluster.add_node(**each)
    return cluster


def main() -> int:
    """Compare them in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the engines are stopped then too
    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/var/tmp"))
    folder.chmod(0o755)
    (folder / "engines").mkdir()
    engines = Engines(folder / "engines")
    cluster = None
    ratios: list[float] = []
    try:
        both = {name: engines.get(name) for name in NAMES}
        image, *others = {engine.images.tiny for engine in both.values()}
        assert not others
        cluster = start_cluster(both)
        programs = [engine.binary for engine in both.values()]
        fleet = timed(batches(image, asked.jobs, asked.at_once, folder / "fleet", str(cluster.address)))
        apart = timed(batches(image, asked.jobs, asked.at_once, folder / "apart", *programs))
        for turn in range(asked.turns):
            order = {"fleet": fleet, "two processes": apart}
            took = {name: order[name]() for name in (order if turn % 2 == 0 else reversed(order))}
            ratios.append(took["two processes"] / took["fleet"])
            told = ", ".join(f"{name} {asked.jobs / took[name]:.2f}/s in {took[name]:.1f} s" for name in order)
            print(f"{told}: {ratios[-1]:.2f} of the throughput; load {os.getloadavg()[0]:.1f}", flush=True)
    finally:
        if cluster is not None:
            cluster.shutdown()
        left = engines.stop()
        shutil.rmtree(folder)
    ratio = statistics.median(ratios)
    print(f"median {ratio:.2f}, {'met' if ratio >= TARGET else 'MISSED'}: {TARGET} is wanted")
    if left:
        print(f"There was still {', '.join(left)}.")
    return 1 if left or ratio < TARGET else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        engine, image, jobs, at_once, folder = sys.argv[2:]
        anyio.run(child, engine, image, int(jobs), int(at_once), folder)
    else:
        sys.exit(main())
