"""An agent as a person uses it: on a screen of its own, in a box that is a run's.

The run's own process only holds the box: it has the lease, the clocks and the agent's variables. Beside it the engine's
client, with the person's terminal, starts the agent by an `exec`. It gets its variables from the holder by a FIFO, so
that no secret is on an engine's command line or in its store, and it has the run's mark: what ends a run ends it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, Final

import anyio
import attrs

from container_runner.agents import Command, CommandLineRuntime
from container_runner.box import argv
from container_runner.box.plan import Plan
from container_runner.config import paths
from container_runner.errors import CommandNotFoundError, ContainerRunnerError, EngineError
from container_runner.options import ExecuteOptions
from container_runner.runner.run import Run
from container_runner.runner.runner import ContainerRunner
from container_runner.stream.messages import ResultMessage
from container_runner.stream.terminal import at_terminal
from container_runner.workspace.changes import Changes

HOLD: Final = """\
umask 077
mkfifo "$0" || exit
export -p >"$0"
read -r code <"$0"
rm -f "$0"
exit "${code:-1}"
"""
"""The run's process: `sh -c HOLD FIFO COMMAND...`. It ends as the screen does, and also when that was killed."""

SHOW: Final = """\
until [ -p "$0" ]; do sleep 0.05 2>/dev/null || sleep 1; done
. "$0"
cd "$PWD"
command -v "$1" >/dev/null || { echo 127 >"$0"; exit 127; }
exec 9>"$0"
set -m
"$@" 9>&-
code=$?
while [ "$code" = 147 ] || [ "$code" = 148 ]; do fg >/dev/null 9>&-; code=$?; done
set +m
echo "$code" >&9
exit "$code"
"""
"""The screen's: `sh -c SHOW FIFO COMMAND...`. Its end of the FIFO is closed with it, whatever ends it.

An agent that Ctrl-Z has stopped goes on at once: there is no shell to bring it back.
"""

EXIT_NO_COMMAND: Final = 127

PATIENCE: Final = 5.0
"""Seconds in which the run ends when its screen has, and the other way round."""


class ScreenRuntime(CommandLineRuntime):
    """Holds the box of an agent that has a screen."""

    def __init__(self, runtime: CommandLineRuntime) -> None:
        self._runtime = runtime
        self._hold = ("sh", "-c", HOLD, f"{paths.HOME}/.screen-{secrets.token_hex(8)}")
        self.exit_code: int | None = None
        """The agent's own, once it has left."""

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The holder, with the agent's command behind it, and all else that the agent is given."""
        del contained
        made = self._runtime.screen(options)
        return attrs.evolve(made, argv=(*self._hold, *made.argv))

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """As the agent itself is told of it."""
        return self._runtime.with_server(options, name, url, token)

    def with_words(self, options: ExecuteOptions, words: str) -> ExecuteOptions:
        """As the agent itself is told."""
        return self._runtime.with_words(options, words)

    def show(self, plan: Plan) -> list[str]:
        """The command that starts the agent itself, beside the run of *plan*."""
        command = ("sh", "-c", SHOW, *plan.command[len(self._hold) - 1 :])
        return argv.screen_argv(plan.run[0], name=plan.container, user=plan.user, run_id=plan.run_id, command=command)

    def outcome(self, result: ResultMessage | None, exit_code: int, stderr: str) -> ContainerRunnerError | None:
        """None for an agent that a person has used, however that ended."""
        del result
        self.exit_code = exit_code
        if exit_code != EXIT_NO_COMMAND:
            return None
        message = "The agent's program is not in the image."
        return CommandNotFoundError(message, next_step=self._runtime.for_missing(), exit_code=exit_code, stderr=stderr)


class Screen:
    """An agent at this process's terminal. `run` does all of it, once; the rest tells how that went.

    Args:
        options: whom to start, and how. There is no prompt among them, nor do clocks but `timeout` count.
    """

    def __init__(self, runner: ContainerRunner, options: ExecuteOptions) -> None:
        self._runtime = ScreenRuntime(runner.runtime)
        self._runner = runner.evolved(runtime=self._runtime)
        self._options = attrs.evolve(options, prompt="", idle_timeout=None, result_timeout=None)
        self.has_begun = False
        """Whether the agent has had the terminal. From then on Ctrl-C is no signal, until the agent has left."""
        self.changes: Changes | None = None
        """What came out of a carried workspace."""

    async def run(self) -> int:
        """Start the agent, wait until the person has left it, and return its exit code.

        Raises:
            ConfigError: it can not be carried out.
            UnsupportedRuntimeError: the agent has no screen.
            ContainerRunnerError: it could not be started, or something else has ended it.
        """
        plan = self._runner.plan(self._options)
        engine = (await self._runner.manager()).engine
        ends: list[tuple[Any, ...]] = []
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:

            def begin(run: Run) -> None:
                tasks.start_soon(self._show, run.plan, engine.environ, tasks.cancel_scope)

            execute = self._runner._execute  # noqa: SLF001  one of our own kind
            try:
                async with aclosing(execute(self._options, plan, lambda *end: ends.append(end), begin)) as messages:
                    async for _ in messages:
                        pass
            except Exception as error:  # out of the task group, which would wrap it
                failure = error
            finally:
                for _, self.changes, _, found in ends:
                    failure = failure or found
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if self._runtime.exit_code is None:
            raise EngineError("The engine's client for the screen has ended, and the agent had not.")
        return self._runtime.exit_code

    async def _show(self, plan: Plan, environ: Mapping[str, str], scope: anyio.CancelScope) -> None:
        self.has_begun = True
        await at_terminal(self._runtime.show(plan), environ, patience=PATIENCE)
        await anyio.sleep(PATIENCE)  # the run ends meanwhile, unless the engine's client has failed or was killed
        scope.cancel()
