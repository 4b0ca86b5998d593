"""One connection by ssh for all that a runner asks of an engine on another machine.

docker's own client opens one for each command, and two for some: seven or eight a run. This one carries the engine's
socket to a socket of ours, in a folder that nobody else may enter.

ssh's stdin is the tunnel's lease, as in a box: a program on the other machine reads it, and with its end all ends. So
nothing is left however we die; the shell around ssh then removes the folder.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import anyio
import attrs

from container_runner.engine.engine import Engine

SCRIPT: Final = 'folder=$1; shift; ssh "$@"; rm -rf "$folder"'
"""`sh -c SCRIPT sh FOLDER ARGUMENT...`"""

SOCKET: Final = "/var/run/docker.sock"
"""Where an engine listens on its machine, if the address does not say."""

OPTIONS: Final = (
    *("-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-o", "ControlPath=none", "-o", "ConnectTimeout=20"),
    *("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3", "-o", "LogLevel=ERROR", "-T"),
)

OPEN_TIMEOUT: Final = 30.0
"""Seconds that it may take until the engine answers."""

END_GRACE: Final = 2.0
"""Seconds that ssh has to end when it was told to, and again when it was killed."""

PING: Final = b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n"

_log = logging.getLogger(__name__)


class Tunnel:
    """A tunnel that is open, until `close`, or until nobody holds it any more."""

    def __init__(self, process: subprocess.Popen[bytes], folder: str) -> None:
        self._process = process
        self.host = f"unix://{folder}/s"
        """What DOCKER_HOST is to be."""
        self.close = weakref.finalize(self, _close, process, folder)

    @property
    def is_open(self) -> bool:
        """Whether its ssh runs."""
        return self._process.poll() is None

    @classmethod
    async def open(cls, address: str, environ: Mapping[str, str]) -> Self | None:
        """A tunnel to the engine at "ssh://...", once the engine answers; None if it does not by this way."""
        folder = await anyio.to_thread.run_sync(lambda: tempfile.mkdtemp(prefix="container-runner-"))
        command = ["sh", "-c", SCRIPT, "sh", folder, *arguments(address, folder)]
        process = _start(command, environ)
        tunnel = cls(process, folder)
        try:
            with anyio.move_on_after(OPEN_TIMEOUT):
                while tunnel.is_open:
                    if await _answers(f"{folder}/s"):
                        return tunnel
                    await anyio.sleep(0.02)
        except BaseException:
            tunnel.close()
            raise
        tunnel.close()
        _log.info("no tunnel to %s: docker connects by itself", address)
        return None


def _start(command: list[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    null = subprocess.DEVNULL
    return subprocess.Popen(
        command, env=dict(environ), stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True
    )


async def tunnelled(engine: Engine) -> Engine:
    """*engine* by a tunnel, which it holds; as it is if it is not docker's by ssh, or none opens."""
    if engine.dialect.name != "docker" or not engine.endpoint.startswith("ssh://"):
        return engine
    if (tunnel := await Tunnel.open(engine.endpoint, engine.environ)) is None:
        return engine
    environ = {name: value for name, value in engine.environ.items() if name != "DOCKER_CONTEXT"}
    return attrs.evolve(engine, environ={**environ, "DOCKER_HOST": tunnel.host}, tunnel=tunnel)


def arguments(address: str, folder: str) -> list[str]:
    """What ssh is called with for an address."""
    parts = urlsplit(address)
    socket = parts.path if parts.path not in ("", "/") else SOCKET
    port = ["-p", str(parts.port)] if parts.port else []
    user = ["-l", parts.username] if parts.username else []
    return [*OPTIONS, *port, *user, "-L", f"{folder}/s:{socket}", "--", parts.hostname or "", "cat"]


async def _answers(path: str) -> bool:
    if not Path(path).exists():  # noqa: ASYNC240  a local file
        return False
    try:
        async with await anyio.connect_unix(path) as stream:
            await stream.send(PING)
            return b" 200 " in await stream.receive()
    except (OSError, anyio.BrokenResourceError, anyio.EndOfStream):
        return False


def _close(process: subprocess.Popen[bytes], folder: str) -> None:
    """The garbage collector calls it, in the middle of anything: it waits for no answer from the other side."""
    if process.stdin is not None:
        process.stdin.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):  # one that not even a kill ends is left to the kernel
            process.wait(END_GRACE)
    shutil.rmtree(folder, ignore_errors=True)
