"""What a runtime is: options in, messages out."""

from __future__ import annotations

import abc
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Protocol, runtime_checkable

import attrs

from container_runner.errors import AgentFailedError, ContainerRunnerError
from container_runner.messages import Message, ResultMessage, parse_line
from container_runner.options import ExecuteOptions
from container_runner.stream import run_on_host


@runtime_checkable
class Runtime(Protocol):
    """Anything that runs an agent. `ContainerRunner` is one too, so it can stand wherever a runtime can."""

    def execute(self, options: ExecuteOptions) -> AsyncIterator[Message]:
        """Run the agent and yield its messages; failures come as one last `ErrorMessage`."""
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


@attrs.frozen(kw_only=True)
class Command:
    """A runtime's description of the process to start."""

    argv: tuple[str, ...]
    """The program and its arguments."""

    stdin: bytes = attrs.field(default=b"", repr=False)
    """What it gets on stdin, which then ends."""

    env: Mapping[str, str] = attrs.field(factory=dict)
    """Variables that it needs. No secrets."""

    credentials: Credentials = Credentials()


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
        """Whether each line is read by `messages.parse_line`, and so may be decoded later, or recorded as it is."""
        return type(self).parse_line is CommandLineRuntime.parse_line

    def outcome(self, result: ResultMessage | None, exit_code: int, stderr: str) -> ContainerRunnerError | None:
        """What went wrong, judged at the end from the last result and the exit code; None for success."""
        del result
        if exit_code == 0:
            return None
        return AgentFailedError(f"The agent exited with code {exit_code}.", exit_code=exit_code, stderr=stderr)

    def execute(self, options: ExecuteOptions) -> AsyncGenerator[Message, None]:
        """Run the agent on this machine, with no container around it."""
        return run_on_host(self, self.command(options, contained=False), options)
