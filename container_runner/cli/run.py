"""`container-runner run`: messages to a terminal or to a program, and signals to the agent."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import aclosing

import anyio

from container_runner.cli.text import render, summary
from container_runner.errors import cli_exit_code
from container_runner.messages import ErrorMessage, ResultMessage
from container_runner.options import ExecuteOptions
from container_runner.runner import ContainerRunner


def show(runner: ContainerRunner, options: ExecuteOptions, *, as_json: bool) -> int:
    """Run the agent, print its messages as they come, and return the exit code.

    INT, TERM and HUP stop the agent and remove its container; a second signal does not wait for that, which the
    container then does by itself.
    """
    return anyio.run(_show, runner, options, as_json)


async def _show(runner: ContainerRunner, options: ExecuteOptions, as_json: bool) -> int:
    messages = runner.execute(options)
    exit_code = 0
    received: list[signal.Signals] = []
    async with anyio.create_task_group() as tasks:
        await tasks.start(_obey_signals, tasks.cancel_scope, received)
        async with aclosing(messages):
            async for message in messages:
                if as_json:
                    sys.stdout.buffer.write(message.to_json() + b"\n")
                    sys.stdout.buffer.flush()
                elif text := render(message):
                    print(text, flush=True)
                if isinstance(message, ErrorMessage):
                    exit_code = cli_exit_code(message.kind)
                if isinstance(message, ResultMessage) and not as_json:
                    print(summary(message), file=sys.stderr)
        tasks.cancel_scope.cancel()
    if received:
        print("Stopped. No container is left.", file=sys.stderr)
        return 128 + received[0]
    return exit_code


async def _obey_signals(
    scope: anyio.CancelScope,
    received: list[signal.Signals],
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        # The cancelled task cleans up; this one must live on to hear a second signal meanwhile.
        with anyio.CancelScope(shield=True) as listening:
            async for number in signals:
                if received:
                    print("Leaving at once; the container ends by itself.", file=sys.stderr, flush=True)
                    os._exit(128 + number)
                received.append(number)
                print(f"{number.name}: stopping the agent…", file=sys.stderr, flush=True)
                scope.cancel()
            listening.cancel()
