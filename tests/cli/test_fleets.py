"""Which fleet a command line means, and what is told of its nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from container_runner import __version__
from container_runner.agents import ClaudeRuntime
from container_runner.cli.fleets import described, fleet_at, trouble_of
from container_runner.config.container import ContainerConfig
from container_runner.errors import ConfigError
from container_runner.fleet.job import Job
from container_runner.fleet.ray_node import PYTHON, Report
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner
from tests.cli.test_batch import write
from tests.cli.test_run import Place, place

__all__ = ["place"]

GOOD: dict[str, Any] = {
    "host": "h", "version": __version__, "python": PYTHON, "engine": "docker 28.2.2",
    "images": {"i": "0123456789abcdef"}, "unset": (), "folders": {}, "cpus": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("on", "address"), [("ray", "auto"), ("ray:head:6379", "head:6379"), ("ray:[::1]:6379", "[::1]:6379")]
)
def test_a_cluster_is_named_by_its_head_or_is_that_of_this_machine(on: str, address: str) -> None:
    assert fleet_at(on).address == address


@pytest.mark.parametrize("on", ["", "slurm", "rayon", "ray:head", "ray://head:10001", "ssh:host"])
def test_what_names_none_is_refused(on: str) -> None:
    with pytest.raises(ConfigError, match=r"HOST:PORT"):
        fleet_at(on)


@pytest.mark.parametrize("verb", ["batch", "doctor"])
def test_ray_client_is_refused_with_the_reason(verb: str, place: Place) -> None:
    words = ["batch", str(write(place, "hello"))] if verb == "batch" else ["doctor"]

    done = place.run(*words, "--on=ray://head:10001")

    assert done.returncode == 2
    assert "ray:// is Ray Client, which can not stream" in done.stderr


@pytest.mark.parametrize(
    ("fields", "pull", "told"),
    [
        ({}, "never", None),
        ({"images": {"i": None}}, "missing", None),
        ({"images": {"i": None}}, "never", "the image i is not there"),
        ({"version": "0.0.1"}, "never", "it has container_runner 0.0.1 and Python"),
        ({"python": "3.0"}, "never", f"it has container_runner {__version__} and Python 3.0"),
        ({"unset": ("KEY",)}, "never", "its environment lacks KEY"),
        ({"error": "There is no engine."}, "never", "There is no engine."),
    ],
)
def test_a_nodes_trouble_is_told(fields: dict[str, Any], pull: Any, told: str | None, tmp_path: Path) -> None:
    runner = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="i", credentials="none", pull=pull), tmp_path)
    job = Job(id="1", runner=runner, options=ExecuteOptions(prompt="Do it.", agent=Agent(name="a")))

    trouble = trouble_of(Report(**{**GOOD, **fields}), job)

    assert trouble == told or (told is not None and trouble is not None and trouble.startswith(told))
    assert trouble_of("it died", job) == described("it died") == "it died"


def test_a_node_is_described_in_a_line() -> None:
    found = {"version": "1", "python": "3.11", "images": {"i": "0123456789abcdef", "j": None}}

    told = described(Report(**{**GOOD, **found}))

    assert (
        told == "docker 28.2.2, image 0123456789ab, j is to be fetched, container_runner 1, Python 3.11, 4 processors"
    )
