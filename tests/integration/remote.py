"""Engines of another machine, played: a daemon with folders of its own where ours are, behind a line that is cut."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from container_runner import ContainerRunner, Engine, ErrorMessage, ExecuteOptions
from container_runner.engine.manager import Containers
from container_runner.runner import lookout, planning
from container_runner.runner.left import fetch_left
from container_runner.stream import beat
from tests.integration.engines import DockerDaemon, find, wait_until, write_program
from tests.integration.images import Images

APART = "mount -t tmpfs -o mode=1777 tmpfs /tmp; mount -t tmpfs tmpfs /run"
"""Has nothing of the tests' folders in /tmp, and sockets of its own in /run."""


@attrs.define
class Line:
    """Carries what comes to a port of this machine to an address, until it is cut: then nothing moves, either way."""

    target: str
    """The path of a socket, or the number of a port."""

    port: int = 0
    connections: int = 0
    _cut: threading.Event = attrs.field(factory=threading.Event, init=False)
    _listener: socket.socket = attrs.field(factory=lambda: socket.create_server(("127.0.0.1", 0)), init=False)
    _open: list[socket.socket] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        """Move nothing any more, and say so to nobody."""
        self._cut.set()

    def mend(self) -> None:
        """Move what comes from now on, on new connections."""
        self._cut.clear()

    def close(self) -> None:
        """End all of it."""
        self._listener.close()
        for one in self._open:
            one.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                self.connections += 1
                self._open.append(ours)
                if self._cut.is_set():
                    continue
                if self.target.isdecimal():
                    theirs = socket.create_connection(("127.0.0.1", int(self.target)))
                else:
                    theirs = socket.socket(socket.AF_UNIX)
                    theirs.connect(self.target)
                self._open.append(theirs)
                for side in (ours, theirs):
                    if side.family != socket.AF_UNIX:  # as every network program does that sends small packets
                        side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._carry, args=(ours, theirs), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        ways = {one: other, other: one}
        with contextlib.suppress(OSError, ValueError):
            while ways:
                ready, _, _ = select.select([*ways], [], [])
                if self._cut.is_set():
                    return
                for side in ready:
                    if data := side.recv(65536):
                        ways[side].sendall(data)
                    else:
                        ways.pop(side).shutdown(socket.SHUT_WR)


@attrs.define
class Elsewhere:
    """Another machine, with a Docker Engine."""

    folder: Path
    daemon: DockerDaemon
    line: Line

    images: Images
    ssh_line: Line | None = None

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path) -> Iterator[Elsewhere]:
        """It, for the length of a block.

        Raises:
            Unavailable: it can not be started here.
        """
        within = ["unshare", "--net", "--mount", "sh", "-c", f'{APART}; exec "$@"', "sh"]
        daemon = DockerDaemon(folder / "there", within)
        daemon.hosts = ("unix:///run/docker.sock",)
        daemon.start()
        line = Line(daemon.host.removeprefix("unix://"))
        local = folder / "docker-there"
        client = shutil.which("docker") or find("docker")
        write_program(local, f"export DOCKER_HOST={daemon.host} DOCKER_CONFIG={folder}/config\nexec {client}")
        try:
            yield cls(folder, daemon, line, Images(str(local)))
        finally:
            line.close()
            daemon.stop()

    @contextlib.contextmanager
    def by_ssh(self) -> Iterator[dict[str, str]]:
        """Variables with which docker's client gets there by ssh, while an sshd listens there."""
        find("sshd")
        (self.folder / "bin").mkdir(exist_ok=True)
        for name in ("hostkey", "key"):
            (self.folder / name).unlink(missing_ok=True)
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(command, check=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (self.folder / "sshd_config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/hostkey\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder}/key.pub\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
        )
        line = Line(str(port))
        (self.folder / "ssh_config").write_text(
            f"Host *\n  IdentityFile {self.folder}/key\n  UserKnownHostsFile /dev/null\n"
            f"  StrictHostKeyChecking no\n  LogLevel ERROR\n"
        )
        write_program(self.folder / "bin/ssh", f"exec {find('ssh')} -F {self.folder}/ssh_config")
        self.sh("mkdir -p /run/sshd")
        there = ["nsenter", f"--target={self.daemon.pid}", "--mount"]
        daemon = subprocess.Popen(
            ["setpriv", "--pdeathsig=TERM", *there, find("sshd"), "-D", "-f", f"{self.folder}/sshd_config"]
        )
        try:
            wait_until(lambda: listens(port), seconds=20)
            self.ssh_line = line
            path = f"{self.folder}/bin:{os.environ['PATH']}"
            host = f"ssh://root@127.0.0.1:{line.port}"
            yield {"PATH": path, "DOCKER_HOST": host, "DOCKER_CONFIG": f"{self.folder}/config"}
        finally:
            daemon.terminate()
            daemon.wait()
            line.close()

    @property
    def tcp(self) -> str:
        """What DOCKER_HOST is for it, over a network."""
        return f"tcp://127.0.0.1:{self.line.port}"

    def sh(self, script: str) -> str:
        """What a script for the shell says over there."""
        command = ["nsenter", f"--target={self.daemon.pid}", "--mount", "sh", "-c", script]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def client(self, *variables: str) -> str:
        """A client for it, as a program, with these variables."""
        name = self.folder / f"docker-{abs(hash(variables))}"
        given = shlex.join([f"DOCKER_CONFIG={self.folder}/config", *(variables or (f"DOCKER_HOST={self.tcp}",))])
        write_program(name, f"export {given}\nexec {find('docker')}")
        return str(name)

    def containers(self) -> list[str]:
        """The ids of the containers of runs."""
        done = subprocess.run(
            [str(self.folder / "docker-there"), "ps", "--all", "--quiet", "--filter=label=container-runner.run"],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.split()


@contextlib.contextmanager
def at_work(config: dict[str, Any], place: Path, backend: str = "asyncio") -> Iterator[subprocess.Popen[str]]:
    """A process whose agent is at work on an engine, with the workspace `project` in *place*."""
    order = {
        "config": config,
        "agent": "tester",
        "workspace": str(place / "project"),
        "state": str(place / "state"),
        "prompt": "sleep 100",
        "backend": backend,
    }
    command = [sys.executable, "-m", "tests.faults.victim", json.dumps(order)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        try:
            assert victim.stdout is not None
            assert "system\n" in iter(victim.stdout.readline, "")
            yield victim
        finally:
            victim.kill()


def be_impatient(patch: pytest.MonkeyPatch) -> float:
    """Let both sides of a lease lose patience sooner, after the seconds that this returns, for the tests' sake."""
    patch.setattr(beat, "BEAT", 1.0)
    patch.setattr(planning, "PATIENCE", 8)
    patch.setattr(lookout, "MISSES", 0)
    return 8.0


async def cut_off(runner: ContainerRunner, options: ExecuteOptions, line: Line) -> ErrorMessage:
    """How a run ends whose line is cut when its agent has been at work for a second."""
    async with contextlib.aclosing(runner.execute(options)) as messages:
        await anext(messages)
        await anyio.sleep(1)
        line.cut()
        last = [message async for message in messages][-1]
    assert isinstance(last, ErrorMessage), last
    return last


async def come_home(engine: Engine, state: Path) -> list[bytes]:
    """The files that runs have left at an engine whose line was cut, once it is mended."""
    found = await fetch_left(Containers(engine, state))
    return [file.path for carrier in found if carrier.changes for file in carrier.changes.files]


def listens(port: int) -> bool:
    """Whether somebody listens at a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
