"""`container-runner run`: messages to a terminal or to a program, and signals to the agent."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import aclosing

import anyio
import anyio.abc

from container_runner.cli.flags import ConfigFlags, RunFlags, prepare
from container_runner.cli.text import render, summary
from container_runner.errors import cli_exit_code
from container_runner.messages import ErrorMessage, Message, ResultMessage
from container_runner.options import ExecuteOptions
from container_runner.runner import ContainerRunner


def run(prompt: str, *, flags: RunFlags | None = None, box: ConfigFlags | None = None) -> int:
    """Run an agent on a folder, and show what it does.

    INT, TERM and HUP stop the agent and remove its container; a second signal does not wait for that, which the
    container then does by itself.

    Parameters
    ----------
    prompt
        What to do. "-": read it from stdin.
    """
    flags = flags or RunFlags()
    runner, options = prepare(prompt, flags, box)
    return anyio.run(_show, runner, options, flags.json)


async def _show(runner: ContainerRunner, options: ExecuteOptions, as_json: bool) -> int:
    messages = runner.execute(options)
    exit_code = 0
    received: list[signal.Signals] = []
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as running:
            await tasks.start(_obey_signals, running, received)
            async with aclosing(messages):
                async for message in messages:
                    _print(message, as_json)
                    if isinstance(message, ErrorMessage):
                        exit_code = cli_exit_code(message.kind)
        tasks.cancel_scope.cancel()
    if received:
        print("Stopped. No container is left.", file=sys.stderr)
        return 128 + received[0]
    return exit_code


def _print(message: Message, as_json: bool) -> None:
    if as_json:
        sys.stdout.buffer.write(message.to_json() + b"\n")
        sys.stdout.buffer.flush()
        return
    if text := render(message):
        print(text, flush=True)
    if isinstance(message, ResultMessage):
        print(summary(message), file=sys.stderr)


async def _obey_signals(
    running: anyio.CancelScope,
    received: list[signal.Signals],
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if received:
                print("Leaving at once; the container ends by itself.", file=sys.stderr, flush=True)
                os._exit(128 + number)
            received.append(number)
            print(f"{number.name}: stopping the agent…", file=sys.stderr, flush=True)
            running.cancel()
