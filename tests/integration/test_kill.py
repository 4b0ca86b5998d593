"""SIGKILL of the command `container-runner`: nobody is left who could clean up, and it is clean."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.engines import RealEngine, wait_until
from tests.integration.runs import Box

AGENT = "setsid-sleep 4242\nignore-term"
"""It has a child in another session, and does not hear TERM."""


@pytest.fixture
def box(engine: RealEngine, workspace: Path) -> Iterator[Box]:
    box = Box.make(engine, workspace)
    yield box
    for container in box.containers():
        engine.remove(container)


def killed(box: Box, *flags: str) -> None:
    """Let the command start that agent, and kill it with its clients."""
    with box.cli("run", AGENT, "--json", "--grace=1", *flags) as process:
        assert process.stdout is not None
        assert "system" in process.stdout.readline()
        for victim in (process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))):
            with contextlib.suppress(ProcessLookupError):  # it had done its part
                os.kill(victim, signal.SIGKILL)


def test_an_ephemeral_container_goes(box: Box) -> None:
    killed(box, "--rw")

    wait_until(lambda: not box.containers(), seconds=60)
    assert box.containers() == []


def test_a_kept_container_stays_without_the_agents_processes(box: Box) -> None:
    killed(box, "--no-ephemeral")
    (container,) = box.containers()

    def processes() -> str:
        return box.engine.run("exec", container, "ps", "-o", "args").stdout

    wait_until(lambda: "4242" not in processes() and "claude" not in processes(), seconds=60)
    assert "4242" not in processes()
    assert "claude" not in processes()
    assert box.containers() == [container]
