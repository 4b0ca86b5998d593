"""What a run may take of the machine, as it is read from inside, and what is told when the agent wanted more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from container_runner import CommandRuntime
from tests.integration.engines import RealEngine
from tests.integration.runs import Box, error_of, result_of, status


@pytest.fixture
def box(engine: RealEngine, workspace: Path) -> Iterator[Box]:
    if engine.name == "podman-rootless" and not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("rootless podman ignores resource limits on cgroup v1; test_machine.py has them on cgroup v2")
    box = Box.make(engine, workspace)
    yield box
    for container in box.containers():
        engine.remove(container)


@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "kept"])
def test_memory_swap_processes_and_processor_time_are_limited(box: Box, ephemeral: bool) -> None:
    look = "cd /sys/fs/cgroup; for file in $(find . -follow -maxdepth 2 -type f -name 'memory*' -o -name 'pids*' "
    look += "-o -name 'cpu*' 2>/dev/null); do echo ${file##*/}: $(cat $file 2>/dev/null); done"

    found = status(box.sh(look, ephemeral=ephemeral, memory="64m", pids_limit=77, cpu_shares=300))

    size = [str(64 * 1024**2)]
    assert found["pids.max"] == ["77"]
    if "memory.max" in found:  # cgroup v2
        assert found["memory.max"] == size
        assert found.get("memory.swap.max", ["0"]) == ["0"]  # it is not there where swap is not counted
        # The formula has changed with the runtimes' versions; 1024 shares are a weight of 39 or 100.
        assert 1 < int(found["cpu.weight"][0]) < 39
    else:
        assert found["memory.limit_in_bytes"] == size
        assert found.get("memory.memsw.limit_in_bytes", size) == size
        assert found["cpu.shares"] == ["300"]


@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "kept"])
def test_an_agent_that_wanted_more_memory_is_told_so(box: Box, ephemeral: bool) -> None:
    hungry = CommandRuntime(["sh", "-c", "tail /dev/zero; exit 1"])

    error = error_of(box.run("go", hungry, ephemeral=ephemeral, memory="32m"))

    assert error is not None
    assert error.kind == "out_of_memory"
    assert "--memory" in error.next_step
    kept = box.containers()
    assert len(kept) == (not ephemeral)
    if kept:
        result_of(box.run("hello", ephemeral=False, memory="32m"))
        assert box.containers() == kept
