"""A command that stands for an agent's: its streams, signals and exit code are those of an agent in a box."""

from __future__ import annotations

import codecs
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import anyio

from container_runner.cli.image import fetch
from container_runner.cli.streams import Output, Stdin, ending_signals, wait_for_parent
from container_runner.cli.text import clean
from container_runner.errors import ConfigError
from container_runner.options import ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.runner.pump import Pump
from container_runner.stream.lines import OversizedLine

MOST_UNSENT: Final = 1024**2
"""How many bytes that the agent has not taken yet may wait in here until no more is read."""

SEND_POLL: Final = 0.05
"""Seconds between two looks at how much that is."""

STOP_PATIENCE: Final = 15.0
"""Seconds beyond the grace period after which who was told to stop waits for nobody, such as who does not read it."""


def check_reach(runner: ContainerRunner, options: ExecuteOptions) -> None:
    """See that the agent can not write what runs outside of its box: who starts this next would run it.

    Raises:
        ConfigError: this Python or this package lies in a workspace that is mounted to be written.
    """
    workspace = options.agent.workspace
    if workspace is None or runner.config.workspace_mode != "rw":
        return
    for place in (Path(sys.executable), Path(sys.prefix), Path(__file__)):
        for path in (place.absolute(), place.resolve()):
            if path.is_relative_to(Path(workspace).resolve()):
                told = (
                    f"the agent could write {path}, which runs outside of its box; install the command elsewhere, as "
                    "`uv tool install agent-container-runner` does, or give --carried"
                )
                raise ConfigError("workspace", str(workspace), "a folder without this program", told=told)


class Relay:
    """Carries bytes between who has started us and an agent, until the agent ends."""

    def __init__(self, runner: ContainerRunner, options: ExecuteOptions, parent: int | None = None, **how: Any) -> None:
        """*how* goes to `ContainerRunner.pump`.

        Args:
            parent: the process with which this ends. None: the parent that this process has by now.
        """
        self._runner = runner
        self._options = options
        self._how = how
        self._stdin = Stdin()
        self._started = anyio.Event()
        self._stopping = anyio.Event()
        self._stdout = Output(1)
        self._stderr = Output(2)
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        self._parent = os.getppid() if parent is None else parent
        self._signal: int | None = None
        self.pump: Pump | None = None

    async def run(self) -> int:
        """All of it; returns the exit code.

        Raises:
            ContainerRunnerError: the agent did not start, or something else ended it.
        """
        failure: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            for task in (self._obey, self._follow_parent, self._cut_off):
                tasks.start_soon(task, tasks.cancel_scope)
            tasks.start_soon(self.feed)
            tasks.start_soon(self._stderr.keep_writing)
            try:
                await self._carry()
            except Exception as error:  # out of the task group, which would wrap it
                failure = error
            tasks.cancel_scope.cancel()
        await self._stderr.write_last()
        pump = self.pump
        if failure is not None and self._signal is None:
            raise failure
        if pump is not None and pump.exit_code is not None:
            return pump.exit_code
        if self._signal is not None:
            return 128 + self._signal
        if pump is not None and pump.error is not None:
            raise pump.error
        return 0

    async def _carry(self) -> None:
        await fetch(self._runner)
        pump = self.pump = self._runner.pump(self._options, on_stderr=self.complain, **self._how)
        try:
            await pump.start()
            self._started.set()
            while said := await pump.read():
                await self.said(said)
        finally:
            pump.stop()
            with anyio.CancelScope(shield=True):
                await pump.aclose()

    async def said(self, pieces: Sequence[bytes | OversizedLine]) -> None:
        """The agent has said this."""
        await self.tell(b"".join(piece for piece in pieces if isinstance(piece, bytes)))

    async def tell(self, data: bytes) -> None:
        """Write to stdout."""
        await self._stdout.write(data)

    def complain(self, data: bytes) -> None:
        """The agent has written this to stderr. A terminal gets nothing of it that could control it."""
        self._stderr.hold(clean(self._text.decode(data)).encode() if os.isatty(2) else data)

    async def feed(self) -> None:
        """Carry stdin to the agent, and its end."""
        await self._started.wait()
        while chunk := await self._stdin.chunk():
            await self.give(chunk)
        self.end_input()

    async def give(self, data: bytes) -> None:
        """Give this to the agent, and wait until it has taken most of it."""
        await self._started.wait()
        pump = self.pump
        if pump is None or pump.has_ended or not pump.takes_more:
            return  # what it does not want is its right
        pump.send(data)
        while pump.unsent > MOST_UNSENT and not pump.has_ended:
            await anyio.sleep(SEND_POLL)

    def end_input(self) -> None:
        """End the agent's stdin."""
        if self.pump is not None:
            self.pump.end_input()

    def interrupt(self) -> None:
        """Somebody has pressed Ctrl-C."""
        self.stop()

    def stop(self) -> None:
        """Have the agent stopped."""
        self._stopping.set()
        if self.pump is not None:
            self.pump.stop()

    async def _cut_off(self, scope: anyio.CancelScope) -> None:
        await self._stopping.wait()
        await anyio.sleep(self._options.grace + STOP_PATIENCE)
        scope.cancel()

    async def _obey(self, scope: anyio.CancelScope) -> None:
        with ending_signals() as signals:
            async for number in signals:
                was_interrupted, self._signal = self._signal is not None, number
                if not self._started.is_set():
                    scope.cancel()
                elif number == signal.SIGINT and not was_interrupted:
                    self.interrupt()
                else:
                    self.stop()

    async def _follow_parent(self, scope: anyio.CancelScope) -> None:
        await wait_for_parent(self._parent)
        self._signal = self._signal or signal.SIGHUP  # which is what its end says, if it has a terminal
        if self._started.is_set():
            self.stop()
        else:
            scope.cancel()
