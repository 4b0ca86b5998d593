"""`container-runner attach`: an agent on its own screen, in a box."""

from __future__ import annotations

import signal
import sys
import termios
from contextlib import suppress
from typing import Final

import anyio
import anyio.abc

from container_runner.cli.carrying import ApplyFlag, When, begin, tell
from container_runner.cli.flags import ConfigFlags, RunFlags, prepare
from container_runner.cli.image import fetch
from container_runner.cli.options import ExecuteFlags
from container_runner.cli.streams import ending_signals
from container_runner.cli.view import View
from container_runner.config.laws import NOT_SHOWN
from container_runner.errors import ConfigError
from container_runner.options import ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.runner.screen import Screen

RESTORE: Final = "\x1b[?1000;1002;1003;1004;1006;2004l\x1b[?1049l\x1b[<u\x1b[?25h\x1b[0m\r\n"
"""Takes back what a program that was killed has asked of a terminal: mouse, pasting, second screen, hidden cursor."""

PLAIN: Final = "\x1b[!p\x1b(B\x0f\x1b[0m"
"""Takes back what would make what we say unreadable, whoever asked for it: colours, letters, margins. Nothing moves."""


def attach(
    *,
    apply: ApplyFlag = None,
    flags: RunFlags | None = None,
    more: ExecuteFlags | None = None,
    box: ConfigFlags | None = None,
) -> int:
    """Use an agent on its own screen."""
    flags = flags or RunFlags()
    if flags.json:
        raise ConfigError(
            "--json",
            True,
            "left out",
            told="--json is left out: an agent's screen is for people; use `container-runner run --json`",
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        told = "attach needs a terminal; without one, use `container-runner run` or `chat`"
        raise ConfigError("stdin", NOT_SHOWN, "a terminal", told=told)
    runner, options = prepare("", flags, more, box)
    runner, when = begin(runner, options, apply, flags, box)
    return anyio.run(_attach, runner, options, when)


async def _attach(runner: ContainerRunner, options: ExecuteOptions, when: When) -> int:
    await fetch(runner)
    screen, as_it_was = Screen(runner, options), termios.tcgetattr(0)
    ended_by: list[int] = []
    code, failure, refused = None, None, None
    async with anyio.create_task_group() as tasks:
        await tasks.start(_obey, screen, ended_by, tasks.cancel_scope)
        try:
            code = await screen.run()
        except Exception as error:  # out of the task group, which would wrap it
            failure = error
        finally:
            with suppress(OSError, termios.error):  # the terminal may be what has gone away
                termios.tcsetattr(0, termios.TCSAFLUSH, as_it_was)
            # One that failed has perhaps not left in order, and none is trusted to leave letters that can be read.
            View().note(PLAIN if code == 0 else f"{RESTORE}{PLAIN}", end="")
        if failure is None:
            refused = await tell(screen.changes, when, is_good=code == 0)
        tasks.cancel_scope.cancel()
    if refused is None:
        refused = await tell(screen.changes, when, is_good=False)
    if failure is not None:
        raise failure
    return 128 + ended_by[0] if ended_by else code or refused


async def _obey(
    screen: Screen,
    ended_by: list[int],
    scope: anyio.CancelScope,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """A signal ends it. Ctrl-C is none while the agent has the terminal: it is the agent's to read."""
    with ending_signals() as signals:
        task_status.started()
        was_told = False
        async for number in signals:
            if number == signal.SIGINT and screen.has_begun and not was_told:
                was_told = True  # some agents leave at the first one, and a hand that is used to two is not yet done
                View().note("The agent has left. Ctrl-C again does not wait for what comes after it.")
                continue
            ended_by.append(number)
            scope.cancel()
