"""Signals, as a person at a terminal means them: the first one stops the work, the second does not wait for that."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.abc


async def until_signalled(
    work: Callable[[], Awaitable[None]],
    *,
    stopping: Callable[[str], None],
    leaving: Callable[[], None],
    beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> signal.Signals | None:
    """Do *work*; INT, TERM and HUP cancel it, and the process leaves at the second of them.

    Args:
        stopping: called with the name of the first signal.
        leaving: called before the process leaves without any clean-up; the container ends by itself.
        beside: runs until the work and its clean-up have ended.

    Returns:
        The signal that came, or None. What the work raises is raised.
    """
    received: list[signal.Signals] = []
    failure: Exception | None = None

    async def obey(*, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if received:
                    try:
                        leaving()
                    finally:
                        os._exit(128 + number)
                received.append(number)
                stopping(number.name)
                running.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as running:
            await tasks.start(obey)
            if beside is not None:
                tasks.start_soon(beside)
            try:
                await work()
            except Exception as error:  # out of the task group, which would wrap it
                failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return received[0] if received else None
