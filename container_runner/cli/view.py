"""What is seen of some work, and the signals that end it."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import anyio
import anyio.abc
import attrs

from container_runner.cli.streams import Output, ending_signals
from container_runner.engine.owner import Owner
from container_runner.errors import ConfigError, ContainerRunnerError
from container_runner.runner import ContainerRunner

NOTHING_LEFT = "Stopped. No container is left."
ELSEWHERE = "Stopped. The nodes have ended their agents."
KEPT = "Stopped. The container is kept for the next run."
LEAVING = "Leaving at once; the agent ends by itself."

LOOK_TIMEOUT = 5.0
"""Seconds that a look at what is left may take."""


QUIET = 10.0
"""Seconds after which an agent that has started and said nothing is wondered at."""

NOTHING_YET = "started, nothing said yet: network? key?"


class View:
    """Shows some work. By itself it shows what we have to say, line by line on stderr."""

    def start(self) -> None:
        """Just before the work."""

    def agent_started(self) -> None:
        """The agent has started."""

    async def beside(self) -> None:
        """What goes on until the work and its clean-up have ended."""

    def note(self, text: str, end: str = "\n") -> None:
        """Say something of our own."""
        with suppress(OSError):  # the terminal may be what has gone away
            print(text, end=end, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """The work is over, however it went. May be called again."""

    def end(self, rows: Iterable[str]) -> None:
        """Say how it went."""
        for row in rows:
            self.note(row)


@attrs.frozen
class Stopped:
    """A signal ended the work."""

    code: int
    """What to exit with."""

    left: str
    """What is left of the containers, in a sentence."""


async def watched(
    work: Callable[[], Awaitable[None]], view: View, runner: ContainerRunner | None, *, stopping: str
) -> Stopped | None:
    """Do *work* and show it.

    INT, TERM and HUP cancel the work, and the second of them ends this process without any clean-up: the containers
    then end by themselves.

    Args:
        runner: whose containers are looked for after that; None: they are not on this machine.
        stopping: what the first signal does, as "stopping the agent".

    Returns:
        What came of a signal, or None if there was none. What the work raises is raised.
    """
    received: list[signal.Signals] = []
    failure: Exception | None = None

    async def obey(*, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        with ending_signals() as signals:
            task_status.started()
            async for number in signals:
                if received:
                    _leave(view, 128 + number)
                received.append(number)
                running.cancel()
                view.note(f"{number.name}: {stopping}…")

    view.start()
    try:
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as running:
                await tasks.start(obey)
                tasks.start_soon(view.beside)
                try:
                    await work()
                except Exception as error:  # out of the task group, which would wrap it
                    failure = error
            tasks.cancel_scope.cancel()
    finally:
        view.stop()
    if failure is not None:
        raise failure
    if not received:
        return None
    return Stopped(128 + received[0], ELSEWHERE if runner is None else await _left_by(runner))


async def _left_by(runner: ContainerRunner) -> str:
    """What is left of this process's containers after it was stopped, in a sentence."""
    if not runner.config.ephemeral:
        return KEPT
    try:
        with anyio.fail_after(LOOK_TIMEOUT):
            manager = await runner.manager()
            left = [info.name for info in await manager.containers(Owner.current().to_labels())]
    except (ContainerRunnerError, TimeoutError):
        return "Stopped. The engine did not tell whether a container is left; `container-runner ps` may."
    return f"Stopped. {', '.join(left)} may be left; `container-runner prune` removes it." if left else NOTHING_LEFT


async def put(data: bytes) -> None:
    """Write to stdout, which holds up this task while nobody reads there, but neither clocks nor signals.

    Raises:
        BrokenPipeError: the reader has gone away.
    """
    sys.stdout.flush()
    try:
        fd = sys.stdout.fileno()
    except (OSError, ValueError):  # it is no file
        sys.stdout.write(data.decode(sys.stdout.encoding or "utf-8", "replace"))
        return
    await Output(fd).write(data)


def wants_live(asked: bool | None) -> bool:
    """Whether to show the live view, where *asked* is what the flag says."""
    if asked is False or not sys.stdout.isatty():
        return False
    try:
        "✓└⠋━".encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def check_live(asked: bool | None, *, is_json: bool) -> None:
    """See that the live view is not asked for where there is JSON for programs.

    Raises:
        ConfigError: it is.
    """
    if asked and is_json:
        raise ConfigError("--live", True, "given without --json", told="--live and --json exclude each other")


def take_any_script() -> None:
    """Let stdout and stderr replace what they can not encode: agents write in any script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _leave(view: View, code: int) -> None:
    try:
        view.stop()
        View.note(view, LEAVING)
    finally:
        os._exit(code)
