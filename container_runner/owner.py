"""Who started a container, and whether they still live."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from collections.abc import Mapping
from typing import Self

import attrs

_HOST = "container-runner.host"
_BOOT = "container-runner.boot"
_PID = "container-runner.pid"
_STARTED = "container-runner.started"

_BOOT_SLACK = 60
"""Seconds by which a boot time may seem to move, when a clock is set."""

_START_SLACK = 5
"""Seconds by which a process's start may seem to move: it is counted from the boot time."""


@attrs.frozen(kw_only=True)
class Owner:
    """A process, told from a later one with the same pid by when it, and its machine, started."""

    host: str
    """A digest of the machine's name."""

    boot: int
    """When the machine started, in seconds since the epoch."""

    pid: int
    started: int
    """When the process started, in seconds since the epoch."""

    @classmethod
    def current(cls) -> Self:
        """This process."""
        import psutil

        pid = os.getpid()
        return cls(host=_host(), boot=round(psutil.boot_time()), pid=pid, started=_started(pid))

    @classmethod
    def from_labels(cls, labels: Mapping[str, str]) -> Self | None:
        """The owner that a container's labels name, or None if they name none."""
        try:
            return cls(
                host=labels[_HOST], boot=int(labels[_BOOT]), pid=int(labels[_PID]), started=int(labels[_STARTED])
            )
        except (KeyError, ValueError):
            return None

    def to_labels(self) -> dict[str, str]:
        """The labels that `from_labels` reads."""
        return {_HOST: self.host, _BOOT: str(self.boot), _PID: str(self.pid), _STARTED: str(self.started)}

    @property
    def is_on_this_host(self) -> bool:
        return self.host == _host()

    @property
    def is_alive(self) -> bool:
        """Whether that process still runs. One on another machine may, for all we know."""
        import psutil

        if not self.is_on_this_host:
            return True
        if abs(psutil.boot_time() - self.boot) > _BOOT_SLACK:
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return bool(abs(process.create_time() - self.started) <= _START_SLACK)
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True


@functools.cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:16]


@functools.cache
def _started(pid: int) -> int:
    import psutil

    return int(psutil.Process(pid).create_time())
