"""Who started a container, and whether they still live."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Self

import attrs

_LABELS: Final = {
    "host": "container-runner.host",
    "boot": "container-runner.boot",
    "pid_namespace": "container-runner.pid-namespace",
    "pid": "container-runner.pid",
    "started": "container-runner.started",
}
"""What a container's labels call the fields of its owner."""

_START_FIELD = 22
"""Where /proc/PID/stat has the process's start, counted from 1 as proc(5) does."""


@attrs.frozen(kw_only=True)
class Owner:
    """A process, told from every other one, also from a later one with the same pid.

    Nothing in it depends on a clock that somebody can set.
    """

    host: str
    """A digest of the machine's name and id."""

    boot: str
    """The kernel's id of its current boot; "" on systems that have none."""

    pid_namespace: str
    """In which the pid means something: two containers on one machine have the same pids twice."""

    pid: int = attrs.field(converter=int)
    started: int = attrs.field(converter=int)
    """When it started: in clock ticks since the boot, or, on systems without /proc, in seconds since the epoch."""

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        return _owner(os.getpid())

    @classmethod
    def from_labels(cls, labels: Mapping[str, str]) -> Self | None:
        """The owner that a container's labels name, or None if they name none."""
        try:
            return cls(**{name: labels[label] for name, label in _LABELS.items()})
        except (KeyError, ValueError):
            return None

    def to_labels(self) -> dict[str, str]:
        """The labels that `from_labels` reads."""
        return {label: str(getattr(self, name)) for name, label in _LABELS.items()}

    @property
    def is_on_this_host(self) -> bool:
        return self.host == _host()

    @property
    def is_of_this_boot(self) -> bool:
        """Whether its machine, which must be this one, has not been started anew since."""
        return self.boot == _boot()

    @property
    def state(self) -> Literal["alive", "dead", "unknown"]:
        """Whether that process still runs: "unknown" if it is on another machine, or has a pid namespace of its own."""
        if not self.is_on_this_host:
            return "unknown"
        if not self.is_of_this_boot:
            return "dead"
        if self.pid_namespace != _pid_namespace():
            return "unknown"
        return "alive" if self._is_running() else "dead"

    def _is_running(self) -> bool:
        import psutil

        if not psutil.pid_exists(self.pid):
            return False
        try:
            if psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE:
                return False
            return _started(self.pid) == self.started
        except psutil.NoSuchProcess:
            # It has just ended, or /proc is mounted with hidepid, and then it is somebody else's and may be the one.
            return bool(psutil.pid_exists(self.pid))
        except psutil.AccessDenied:
            return True


@functools.lru_cache(maxsize=1)
def _owner(pid: int) -> Owner:
    return Owner(host=_host(), boot=_boot(), pid_namespace=_pid_namespace(), pid=pid, started=_started(pid))


def _started(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except FileNotFoundError:
        import psutil  # slow to import, and only asked where there is no /proc

        return int(psutil.Process(pid).create_time())  # which moves with the clock on Linux, and not on macOS
    # The second field is the program's name in brackets, and may hold anything.
    return int(stat.rpartition(")")[2].split()[_START_FIELD - 3])


@functools.cache
def _host() -> str:
    machine = _read("/etc/machine-id")
    return hashlib.sha256(f"{socket.gethostname()}\0{machine}".encode()).hexdigest()[:16]


@functools.cache
def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


@functools.cache
def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace").strip()
    except OSError:
        return ""
