"""What the fake docker puts out: on its stdout and stderr, and into its log."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from typing import Any


def refuse() -> int:
    """Say what this can not play, and return the exit code."""
    tell(
        "docker: this is a fake docker, which plays ephemeral runs on a mounted workspace only; "
        "give --rw, or set CONTAINER_RUNNER_WORKSPACE_MODE=rw"
    )
    return 125


def tell(line: str) -> None:
    """Print a line on stderr."""
    with contextlib.suppress(OSError):  # who started us may be dead
        os.write(2, f"{line}\n".encode())


def put(data: bytes) -> None:
    """Print to stdout."""
    rest = memoryview(data)
    with contextlib.suppress(OSError):
        while rest:
            rest = rest[os.write(1, rest) :]


def log(words: Sequence[str], **more: Any) -> None:
    """Add a command to the file of calls."""
    if file := os.environ.get("DOCKER_FAKE_CALLS"):
        line = json.dumps({"argv": list(words), **more}) + "\n"
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, line.encode("utf-8", "surrogateescape"))
        os.close(fd)
