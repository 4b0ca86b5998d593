"""podman's monitors that podman itself has forgotten.

A `podman run` client that is killed between starting a container's monitor and writing that down leaves the monitor
and the container's first process behind for ever: podman lists them no more, and its `rm` reports success. Only the
machine's process table knows them, by the container's id on the monitor's command line.
"""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


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
