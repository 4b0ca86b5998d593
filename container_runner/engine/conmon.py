"""podman's monitors that podman itself has forgotten.

A `podman run` client that is killed between starting a container's monitor and writing that down leaves the monitor
and the container's first process behind for ever: podman lists them no more, and its `rm` reports success. Only the
machine's process table knows them, by the container's id on the monitor's command line.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

OURS = re.compile(r"container-runner-.+-[0-9a-f]{12}")
"""What the names of our containers look like. It only chooses whom to ask about: what podman knows is left alone."""

YOUNGEST = 2.0
"""Seconds that a monitor has lived at least, before podman is asked whether it knows its container."""

_log = logging.getLogger(__name__)


def monitored(graph_root: str) -> list[str]:
    """The ids of our containers that have a monitor on this machine.

    Args:
        graph_root: where this podman keeps its containers; another user's, or another podman's, are not among them.
    """
    return [
        values["-c"]
        for process, values in _monitors()
        if Path(graph_root) in Path(values.get("-b", "/")).parents
        and time.time() - process.info["create_time"] >= YOUNGEST
    ]


def end_forgotten(container_id: str) -> None:
    """Kill the monitor of a container that has been removed, and the processes that it still holds.

    In the ordinary case, and where the engine is not on this machine, there are none.
    """
    import psutil

    killed = 0
    for process, values in _monitors():
        if values["-c"] != container_id:
            continue
        held: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            held = process.children(recursive=True)
        for left in (*held, process):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                left.kill()
                killed += 1
    if killed:
        _log.warning("killed %d processes that podman had forgotten", killed)


def _monitors() -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """The monitors of our containers, with their flags. What runs inside a container can call itself what it wants,
    so only processes of our own pid namespace count."""
    import psutil

    for process in psutil.process_iter(["name", "cmdline", "create_time"]):
        values = dict(pairwise(process.info["cmdline"] or []))
        if process.info["name"] != "conmon":
            continue
        if not OURS.fullmatch(values.get("-n", "")) or not re.fullmatch("[0-9a-f]{64}", values.get("-c", "")):
            continue
        try:
            ours = Path("/proc/self/ns/pid").readlink() == Path(f"/proc/{process.pid}/ns/pid").readlink()
        except OSError:
            continue
        if ours:
            yield process, values
