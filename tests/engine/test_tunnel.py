"""The tunnel to an engine: what ssh is asked for. tests/integration/test_elsewhere.py has it at work."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from pathlib import Path

import attrs
import pytest

from container_runner.box.argv import DOCKER, PODMAN
from container_runner.engine import tunnel
from container_runner.engine.engine import Engine
from container_runner.engine.tunnel import Tunnel, arguments, tunnelled


@pytest.mark.parametrize(
    ("address", "end"),
    [
        ("ssh://far", ["-L", "/f/s:/var/run/docker.sock", "--", "far", "cat"]),
        ("ssh://me@far:2222/", ["-p", "2222", "-l", "me", "-L", "/f/s:/var/run/docker.sock", "--", "far", "cat"]),
        ("ssh://far/run/user/1000/docker.sock", ["-L", "/f/s:/run/user/1000/docker.sock", "--", "far", "cat"]),
    ],
)
def test_an_address_tells_how_ssh_is_called(address: str, end: list[str]) -> None:
    assert arguments(address, "/f")[-len(end) :] == end
    assert "BatchMode=yes" in arguments(address, "/f")


async def test_where_no_tunnel_opens_the_engine_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    engine = Engine(binary="docker", dialect=DOCKER, environ=environ, endpoint="ssh://far")

    assert await tunnelled(engine) is engine
    assert [path.name for path in tmp_path.iterdir()] == ["ssh"]


def test_what_nobody_holds_is_ended_and_nothing_is_waited_for_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "tunnel").mkdir()
    process = subprocess.Popen(["sleep", "1000"], stdin=subprocess.PIPE, start_new_session=True)
    steps: list[str] = []
    kill, wait = os.killpg, process.wait

    def killed(group: int, number: int) -> None:
        steps.append("end")
        kill(group, number)

    def waited(timeout: float | None = None) -> int:
        steps.append("wait")
        return wait(timeout)

    monkeypatch.setattr(os, "killpg", killed)
    monkeypatch.setattr(process, "wait", waited)
    made = Tunnel(process, str(folder))
    assert made.is_open

    del made
    gc.collect()

    assert steps == ["end", "wait"]
    assert process.returncode == -signal.SIGTERM
    assert not folder.exists()


@pytest.mark.parametrize("obeys", [signal.SIGKILL, None])
def test_one_that_does_not_end_is_not_waited_for_for_ever(
    obeys: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "END_GRACE", 0.05)
    (folder := tmp_path / "tunnel").mkdir()
    deaf = ["sh", "-c", "trap '' TERM; echo; exec sleep 1000"]
    process = subprocess.Popen(deaf, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    told: list[int] = []
    kill = os.killpg

    def killed(group: int, number: int) -> None:
        told.append(number)
        if number == obeys:
            kill(group, number)
            process.wait()  # however long the machine takes for it

    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", killed)
        Tunnel(process, str(folder)).close()
    is_there = process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()

    assert told == [signal.SIGTERM, signal.SIGKILL]
    assert is_there == (obeys is None)
    assert not folder.exists()


async def test_no_tunnel_is_made_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Tunnel, "open")
    engine = Engine(binary="docker", dialect=DOCKER, environ={}, endpoint="tcp://far:1")
    podman = attrs.evolve(engine, dialect=PODMAN, endpoint="ssh://far")

    assert await tunnelled(engine) is engine
    assert await tunnelled(podman) is podman
