"""What a runtime is: options in, messages out."""

from __future__ import annotations

import abc
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import anyio
import attrs

from container_runner.config.values import Mount
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
from container_runner.session.codec import Codec
from container_runner.session.tools import Tool
from container_runner.stream.messages import ErrorMessage, Message, ResultMessage, parse_line
from container_runner.stream.process import KILL_PATIENCE, Process, settle
from container_runner.stream.reader import Reader
from container_runner.stream.stream import MessageStream, killed


@runtime_checkable
class Runtime(Protocol):
    """Anything that runs an agent. `ContainerRunner` is one too, so it can stand wherever a runtime can."""

    def execute(self, options: ExecuteOptions) -> AsyncIterator[Message]:
        """Run the agent and yield its messages; failures come as one last `ErrorMessage`."""
        ...


class Describes(Protocol):
    """A runtime that can describe its command, so that a container can be put around it.

    It may also have `parse_line(line)` or `reader(options)`, and `outcome(result, exit_code, stderr)`, as
    `CommandLineRuntime` has them.
    """

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The process for *options*; *contained* tells whether a container stands around it."""
        ...


@attrs.frozen(kw_only=True)
class Endpoint:
    """The API of an agent's model. `Agent.base_url` leads the agent to another one."""

    upstream: str
    """Its base URL, such as "https://api.anthropic.com"."""

    headers: Mapping[str, str]
    """How each variable's key travels: {"ANTHROPIC_API_KEY": "x-api-key: {}"}."""

    allowed: tuple[str, ...]
    """What the agent asks of it, as methods and paths behind the base URL: "POST /v1/messages". `*` stands for
    anything."""


@attrs.frozen(kw_only=True)
class Credentials:
    """Where an agent's credentials are found on the host."""

    names: tuple[str, ...] = ()
    """Variables, the first ones preferred."""

    file: str | None = None
    """The one file that serves instead, such as "~/.claude/.credentials.json"."""

    target: str | None = None
    """Where that file is mounted in the container, read-only."""

    endpoint: Endpoint | None = None
    """Where they are shown, for a gateway that adds them on the way out. None: it can not."""


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

    files: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Small files that it finds in the container, such as its settings: texts by absolute paths, in folders that are
    there. They are written anew for each run. No secrets."""

    session_id: str = ""
    """The id that its session will have, of an agent that is told it and that itself names it late or never."""

    kept: tuple[str, ...] | None = None
    """The folders in its sessions folder that its next run finds again, by their paths in there. What else lies there
    is the container's own, and gone with it. None: all of it is kept."""

    mounts: Mapping[str, Mount] = attrs.field(factory=dict)
    """What of the host it needs beside, by what errors call it."""

    is_live: bool = False
    """Whether its stdin stays open, for a session."""

    is_exact: bool = False
    """Whether its stdout is handed on byte for byte, and not by lines."""


class CommandLineRuntime(abc.ABC):
    """A runtime whose agent is a command: it can run on the host by itself, or in a container."""

    only_live: ClassVar[bool] = False
    """Whether the agent gets each prompt in a live session, also one alone."""

    reads_mentions: ClassVar[bool] = False
    """Whether the agent reads files that a prompt names as @/path, so that they are paths to be translated."""

    @abc.abstractmethod
    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The process for *options*; *contained* tells whether a container stands around it."""

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """*options*, with an MCP server more, which is reached by HTTP.

        An agent of which it is not known how to tell it that gets nothing but the variables.

        Args:
            token: the variable whose value it wants to see, as `Authorization: Bearer VALUE`.
        """
        del name, url, token
        return options

    def with_words(self, options: ExecuteOptions, words: str) -> ExecuteOptions:
        """*options*, with these words in the agent's system prompt, behind its own.

        Raises:
            UnsupportedRuntimeError: it is not known how to tell it something so.
        """
        del options, words
        raise no_words(type(self).__name__)

    def live(self, options: ExecuteOptions, *, asks: bool, tools: Sequence[Tool]) -> Command:
        """The process of a live session in a container, with `Command.is_live`.

        Args:
            asks: whether somebody answers what the agent asks before it acts.
            tools: the caller's functions that it may call.

        Raises:
            UnsupportedRuntimeError: the agent has no live sessions, or can not be given tools.
        """
        del options, asks, tools
        raise _no_sessions(self)

    def codec(self, options: ExecuteOptions, *, asks: bool, tools: Sequence[Tool]) -> Codec:
        """What is said on its stdin and stdout. Each session has its own.

        Raises:
            UnsupportedRuntimeError: see `live`.
        """
        del options, asks, tools
        raise _no_sessions(self)

    def screen(self, options: ExecuteOptions) -> Command:
        """The agent as a person uses it, on a screen of its own in a container. There is no prompt.

        Raises:
            UnsupportedRuntimeError: it has none, or it is not known how it is started.
        """
        del options
        message = f"{type(self).__name__} has no screen of its own."
        step = "Use an agent that has one, such as ClaudeRuntime, or one given by its command."
        raise UnsupportedRuntimeError(message, next_step=step)

    def parse_line(self, line: bytes) -> Message | None:
        """One line of its stdout as a message; None for a blank one. Never raises."""
        return parse_line(line)

    def reader(self, options: ExecuteOptions) -> Reader | None:
        """What reads the lines of one run, of an agent with a dialect of its own.

        None: each line is a message by itself, as `parse_line` reads it.
        """
        del options
        return None

    @property
    def reads_plain(self) -> bool:
        """Whether each line is read by `messages.parse_line`, and so may be recorded as it is."""
        kind = type(self)
        return kind.parse_line is CommandLineRuntime.parse_line and kind.reader is CommandLineRuntime.reader

    def read(self, process: Process, options: ExecuteOptions, *, session_id: str = "", **more: Any) -> MessageStream:
        """The messages of its *process*. The rest goes to `MessageStream`.

        Args:
            session_id: see `Command.session_id`.
        """
        parse, reader = parse_line if self.reads_plain else self.parse_line, self.reader(options)
        if reader is not None:
            reader.session_id = session_id
        return MessageStream(process, options, parse, reader, for_login=self.for_login(), **more)

    def for_login(self) -> str | None:
        """What to do if its API does not take its key or login; None: what `AuthenticationError` advises."""
        return None

    def for_missing(self) -> str | None:
        """What to do where an image has no such program; None: nothing is known but the usual."""
        return None

    def outcome(self, result: ResultMessage | None, exit_code: int, stderr: str) -> ContainerRunnerError | None:
        """What went wrong, judged at the end from the last result and the exit code; None for success."""
        if exit_code == 0:
            # A line that does not say whether it is an error, of an agent that is not claude, says nothing of it.
            if result is None or result.raw.get("is_error") is not True:
                return None
            return AgentFailedError("The agent says in its result that it failed.", exit_code=0, stderr=stderr)
        message, step = f"The agent exited with code {exit_code}.", None if result else for_unstarted(exit_code)
        return AgentFailedError(message, next_step=step, exit_code=exit_code, stderr=stderr)

    def execute(self, options: ExecuteOptions) -> AsyncGenerator[Message, None]:
        """Run the agent on this machine, with no container around it.

        Raises:
            ConfigError: the options have a setup or a check, which are for a box.
        """
        for name, step in (("setup", options.setup), ("check", options.check)):
            if step is not None:
                raise ConfigError(name, step, "None without a container: run it yourself, or use ContainerRunner")
        return run_on_host(self, self.command(options, contained=False), options)


def for_unstarted(exit_code: int) -> str | None:
    """What to do about an agent that ends as what can not be started does; None for another exit code."""
    if exit_code not in (126, 127):
        return None
    return "So ends what can not be started: see that the interpreter in its first line is in the image, without CRLF."


def _no_sessions(runtime: CommandLineRuntime) -> UnsupportedRuntimeError:
    message = f"{type(runtime).__name__} has no live sessions: its agent gets one prompt, and ends."
    step = "Use `run` or `execute`, or an agent that has them, such as ClaudeRuntime."
    return UnsupportedRuntimeError(message, next_step=step)


def no_words(agent: str) -> UnsupportedRuntimeError:
    """The error for an agent that can not be told something in its system prompt."""
    message = f"{agent} has no system prompt that its network can be told in."
    return UnsupportedRuntimeError(message, next_step="Leave out tell_network, or say it in the prompt.")


def appended(options: ExecuteOptions, words: str) -> ExecuteOptions:
    """*options*, with more words for the system prompt."""
    said = options.append_system_prompt
    return attrs.evolve(options, append_system_prompt=words if said is None else f"{said}\n\n{words}")


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
        stream = runtime.read(process, options, session_id=command.session_id)
        while messages := await stream.read():
            for message in messages:
                yield message
        exit_code = await stream.wait()
        stderr = process.stderr.decode("utf-8", "replace")
        failure = runtime.outcome(stream.result, exit_code, stderr)
        error = (killed(exit_code, stderr) or failure) if failure else stream.denied()
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
