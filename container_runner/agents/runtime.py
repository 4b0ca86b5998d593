"""What a runtime is: options in, messages out."""

from __future__ import annotations

import abc
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

import anyio
import attrs

from container_runner.errors import (
    AgentError,
    AgentFailedError,
    CommandNotExecutableError,
    CommandNotFoundError,
    ConfigError,
    ContainerRunnerError,
    UnsupportedRuntimeError,
)
from container_runner.options import ExecuteOptions
from container_runner.stream.messages import ErrorMessage, Message, ResultMessage, parse_line
from container_runner.stream.process import KILL_PATIENCE, Process, settle
from container_runner.stream.stream import MessageStream, killed


@runtime_checkable
class Runtime(Protocol):
    """Anything that runs an agent. `ContainerRunner` is one too, so it can stand wherever a runtime can."""

    def execute(self, options: ExecuteOptions) -> AsyncIterator[Message]:
        """Run the agent and yield its messages; failures come as one last `ErrorMessage`."""
        ...


class Describes(Protocol):
    """A runtime that can describe its command, so that a container can be put around it.

    It may also have `parse_line(line)` and `outcome(result, exit_code, stderr)`, as `CommandLineRuntime` has them.
    """

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The process for *options*; *contained* tells whether a container stands around it."""
        ...


@attrs.frozen(kw_only=True)
class Credentials:
    """Where an agent's credentials are found on the host."""

    names: tuple[str, ...] = ()
    """Variables, the first ones preferred."""

    file: str | None = None
    """The one file that serves instead, such as "~/.claude/.credentials.json"."""

    target: str | None = None
    """Where that file is mounted in the container, read-only."""


def _words(argv: object) -> tuple[str, ...]:
    if isinstance(argv, str) or not isinstance(argv, Iterable):
        raise ConfigError("argv", argv, 'a list of words, as ["my-agent", "--fast"]')
    words = tuple(argv)
    if not words or not all(isinstance(word, str) for word in words):
        raise ConfigError("argv", words, 'a list of words, as ["my-agent", "--fast"]')
    return words


@attrs.frozen(kw_only=True)
class Command:
    """A runtime's description of the process to start."""

    argv: tuple[str, ...] = attrs.field(converter=_words)
    """The program and its arguments."""

    stdin: bytes = attrs.field(default=b"", repr=False)
    """What it gets on stdin, which then ends."""

    env: Mapping[str, str] = attrs.field(factory=dict)
    """Variables that it needs. No secrets."""

    credentials: Credentials = Credentials()

    kept: tuple[str, ...] | None = None
    """The folders in its sessions folder that its next run finds again, by their paths in there. What else lies there
    is the container's own, and gone with it. None: all of it is kept."""


class CommandLineRuntime(abc.ABC):
    """A runtime whose agent is a command: it can run on the host by itself, or in a container."""

    @abc.abstractmethod
    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The process for *options*; *contained* tells whether a container stands around it."""

    def parse_line(self, line: bytes) -> Message | None:
        """One line of its stdout as a message; None for a blank one. Never raises."""
        return parse_line(line)

    @property
    def reads_plain(self) -> bool:
        """Whether each line is read by `messages.parse_line`, and so may be recorded as it is."""
        return type(self).parse_line is CommandLineRuntime.parse_line

    def read(self, process: Process, options: ExecuteOptions, **more: Any) -> MessageStream:
        """The messages of its *process*. The rest goes to `MessageStream`."""
        return MessageStream(process, options, parse_line if self.reads_plain else self.parse_line, **more)

    def outcome(self, result: ResultMessage | None, exit_code: int, stderr: str) -> ContainerRunnerError | None:
        """What went wrong, judged at the end from the last result and the exit code; None for success."""
        if exit_code == 0:
            # A line that does not say whether it is an error, of an agent that is not claude, says nothing of it.
            if result is None or result.raw.get("is_error") is not True:
                return None
            return AgentFailedError("The agent says in its result that it failed.", exit_code=0, stderr=stderr)
        return AgentFailedError(f"The agent exited with code {exit_code}.", exit_code=exit_code, stderr=stderr)

    def execute(self, options: ExecuteOptions) -> AsyncGenerator[Message, None]:
        """Run the agent on this machine, with no container around it."""
        return run_on_host(self, self.command(options, contained=False), options)


class DescribedRuntime(CommandLineRuntime):
    """What a runtime that is none of ours says of its command, and of how its output is read and judged."""

    def __init__(self, runtime: Describes) -> None:
        self._runtime = runtime

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """What it says.

        Raises:
            ConfigError: it says something else than a `Command`.
        """
        command = self._runtime.command(options, contained=contained)
        if not isinstance(command, Command):
            name = f"{type(self._runtime).__name__}.command()"
            raise ConfigError(name, command, 'a Command, as Command(argv=["my-agent"], stdin=options.prompt.encode())')
        return command

    def parse_line(self, line: bytes) -> Message | None:
        """As it reads a line, if it does."""
        parse: Callable[[bytes], Message | None] = getattr(self._runtime, "parse_line", parse_line)
        return parse(line)

    @property
    def reads_plain(self) -> bool:
        return not hasattr(self._runtime, "parse_line")

    def outcome(self, result: ResultMessage | None, exit_code: int, stderr: str) -> ContainerRunnerError | None:
        """As it judges the end, if it does."""
        judge: Judge = getattr(self._runtime, "outcome", super().outcome)
        return judge(result, exit_code, stderr)


Judge: TypeAlias = Callable[[ResultMessage | None, int, str], ContainerRunnerError | None]


def command_line(runtime: object) -> CommandLineRuntime:
    """Any runtime that can describe its command, as one of ours.

    Raises:
        ConfigError: it is no runtime.
        UnsupportedRuntimeError: it can not describe its command.
    """
    if isinstance(runtime, CommandLineRuntime):
        return runtime
    name = runtime.__name__ if isinstance(runtime, type) else type(runtime).__name__
    if isinstance(runtime, type):
        raise ConfigError("runtime", runtime, f"an instance, not the class: {name}(...)")
    if callable(getattr(runtime, "command", None)):
        return DescribedRuntime(runtime)  # type: ignore[arg-type]  # duck typing counts
    if hasattr(runtime, "execute"):
        message = f"{name} runs its agent in this process, and only a command can be put into a container."
        raise UnsupportedRuntimeError(message)
    raise ConfigError("runtime", runtime, "a runtime, such as ClaudeRuntime()")


async def run_on_host(
    runtime: CommandLineRuntime, command: Command, options: ExecuteOptions
) -> AsyncGenerator[Message, None]:
    """Run *command* on this machine, with no container around it, and yield its messages."""
    error: ContainerRunnerError | None = None
    process: Process | None = None
    stream: MessageStream | None = None
    said: list[Message] = []
    try:
        process = await Process.start(
            command.argv,
            env={**os.environ, **command.env},
            cwd=options.agent.workspace,
            stdin=command.stdin,
            line_limit=options.line_limit,
        )
        stream = runtime.read(process, options)
        while messages := await stream.read():
            for message in messages:
                yield message
        exit_code = await stream.wait()
        stderr = process.stderr.decode("utf-8", "replace")
        failure = runtime.outcome(stream.result, exit_code, stderr)
        error = failure and (killed(exit_code, stderr) or failure)
    except FileNotFoundError:
        error = CommandNotFoundError(f"There is no program {command.argv[0]!r} on this machine.")
    except PermissionError:
        error = CommandNotExecutableError(f"The program {command.argv[0]!r} can not be run.")
    except AgentError as failed:
        error = failed
    except OSError as failed:  # an argument is too long, say
        error = CommandNotExecutableError(f"The program {command.argv[0]!r} can not be run: {failed.strerror}.")
    finally:
        if process is not None:
            said = await settle(partial(_stop_on_host, process, stream, options.grace))
            process.close()
    for message in said:
        yield message
    if error is not None:
        yield ErrorMessage.from_error(error)


async def _stop_on_host(process: Process, stream: MessageStream | None, grace: float) -> list[Message]:
    """TERM to the process's group, *grace* seconds for its leader, KILL to what is left of the group.

    Returns:
        What it still said.
    """
    said: list[Message] = []
    process.close_stdin()
    for number, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_PATIENCE)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with anyio.move_on_after(wait):
            if stream is not None:
                await stream.drain(said)
            await process.wait()
    await process.terminate()
    return said
