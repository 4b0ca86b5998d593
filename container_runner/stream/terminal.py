"""A process that has the terminal of this one, and so the person who sits there."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress

import anyio
from anyio import open_process

from container_runner.stream.process import KILL_PATIENCE


async def at_terminal(argv: Sequence[str], env: Mapping[str, str], *, patience: float) -> int:
    """Run *argv* with our own stdin, stdout and stderr, and return its exit code.

    Args:
        patience: seconds that it has to end by itself once this is cancelled.

    Raises:
        OSError: the program is not there, or can not be run.
    """
    with anyio.CancelScope(shield=True):
        process = await open_process(list(argv), stdin=None, stdout=None, stderr=None, env=env)
    try:
        return await process.wait()
    finally:
        with anyio.CancelScope(shield=True):
            for seconds, number in ((patience, signal.SIGTERM), (KILL_PATIENCE, signal.SIGKILL), (KILL_PATIENCE, None)):
                with anyio.move_on_after(seconds):
                    await process.wait()
                if process.returncode is not None or number is None:
                    break
                with suppress(ProcessLookupError):
                    # asyncio's own way collects a child that has just ended, and its exit code is lost.
                    os.kill(process.pid, number)
