"""What a run may take of the machine, as it is read from inside, and what is told when the agent wanted more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from container_runner import CommandRuntime
from container_runner.runner import disk
from container_runner.stream import stream
from tests.integration.engines import RealEngine
from tests.integration.runs import ON_OWN_ROOTFUL, Box, error_of, lines_of, status

HUNGRY = CommandRuntime(["sh", "-c", "tail /dev/zero; exit 1"])

LIMITS = {"memory": "64m", "pids_limit": 77, "cpu_shares": 300}

LOOK = """\
cd /sys/fs/cgroup; for file in $(find . -follow -maxdepth 2 -type f -name 'memory*' -o -name 'pids*' -o -name 'cpu*' \
2>/dev/null); do echo ${file##*/}: $(cat $file 2>/dev/null); done"""


@pytest.fixture
def box(engine: RealEngine, workspace: Path) -> Iterator[Box]:
    if engine.name == "podman-rootless" and not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("rootless podman ignores resource limits on cgroup v1; test_machine.py has them on cgroup v2")
    box = Box.make(engine, workspace)
    yield box
    for container in box.containers():
        engine.remove(container)


def test_memory_swap_processes_and_processor_time_are_limited(box: Box) -> None:
    assert_limited(box.sh(LOOK, **LIMITS))


def test_an_agent_that_wanted_more_memory_is_told_so(box: Box) -> None:
    error = error_of(box.run("go", HUNGRY, **LIMITS))

    assert error is not None
    assert error.kind == "out_of_memory"
    assert "--memory" in error.next_step
    assert box.containers() == []


def test_a_kept_container_has_the_same_limits_and_outlives_an_agent_that_went_over_them(box: Box) -> None:
    error = error_of(box.run("go", HUNGRY, ephemeral=False, **LIMITS))
    kept = box.containers()
    # Of the same kind of agent, for another kind has other mounts.
    after = b"\n".join(lines_of(box.run("go", CommandRuntime(["sh", "-c", LOOK]), ephemeral=False, **LIMITS))).decode()

    assert error is not None
    assert error.kind == "out_of_memory"
    assert_limited(after)
    assert box.containers() == kept
    stop_all(box)
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("how", [{}, {"workspace_mode": "carried", "carry": "overlay"}], ids=["rw", "carried"])
def test_an_agent_that_writes_more_than_it_may_is_stopped(
    box: Box, monkeypatch: pytest.MonkeyPatch, how: dict[str, str]
) -> None:
    monkeypatch.setattr(disk, "LEAST", 0.2)
    monkeypatch.setattr(stream, "CHECK_INTERVAL", 0.2)
    writing = CommandRuntime(["sh", "-c", "head -c 9000000 /dev/zero >big; sleep 600"])

    error = error_of(box.run("go", writing, disk_limit="4m", grace=0, idle_timeout=120, **how))

    assert error is not None
    assert error.kind == "disk_limit", error
    assert ("/layers/" in error.message) == bool(how)
    assert "and may add 4 MiB" in error.message
    assert box.containers() == []


def assert_limited(files: str) -> None:
    """The limits are those that were asked for: LIMITS, and no swap."""
    found = status(files)
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


def stop_all(box: Box) -> None:
    async def main() -> None:
        manager = await box.runner().manager()
        for info in await manager.containers():
            if info.id in box.containers():
                await manager.stop(info.name)

    anyio.run(main)
