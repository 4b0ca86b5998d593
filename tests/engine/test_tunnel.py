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
    tunnel = Tunnel(process, str(folder))
    assert tunnel.is_open

    del tunnel
    gc.collect()

    assert steps == ["end", "wait"]
    assert process.returncode == -signal.SIGTERM
    assert not folder.exists()


async def test_no_tunnel_is_made_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Tunnel, "open")
    engine = Engine(binary="docker", dialect=DOCKER, environ={}, endpoint="tcp://far:1")
    podman = attrs.evolve(engine, dialect=PODMAN, endpoint="ssh://far")

    assert await tunnelled(engine) is engine
    assert await tunnelled(podman) is podman
