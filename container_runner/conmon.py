"""podman's monitors that podman itself has forgotten.

A `podman run` client that is killed between starting a container's monitor and writing that down leaves the monitor
and the container's first process behind for ever: podman lists them no more, and its `rm` reports success. Only the
machine's process table knows them, by the container's id on the monitor's command line.
"""

from __future__ import annotations

import logging
import re
import time
from itertools import pairwise
from pathlib import Path

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
    import psutil

    ids = []
    for process in psutil.process_iter(["name", "cmdline", "create_time"]):
        words = process.info["cmdline"] or []
        if process.info["name"] != "conmon" or time.time() - process.info["create_time"] < YOUNGEST:
            continue
        values = dict(pairwise(words))
        if OURS.fullmatch(values.get("-n", "")) and Path(graph_root) in Path(values.get("-b", "/")).parents:
            ids.append(values.get("-c", ""))
    return [container_id for container_id in ids if container_id]


def end_forgotten(container_id: str) -> int:
    """Kill the monitor of a container that has been removed, and the processes that it still holds.

    Returns:
        How many processes were killed; 0 in the ordinary case, and where the engine is not on this machine.
    """
    import psutil

    killed = 0
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] != "conmon" or container_id not in (process.info["cmdline"] or ()):
            continue
        for left in [*process.children(recursive=True), process]:
            try:
                left.kill()
                killed += 1
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
    if killed:
        _log.warning("killed %d processes that podman had forgotten", killed)
    return killed
