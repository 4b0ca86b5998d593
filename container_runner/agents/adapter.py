"""Whatever is a runtime, as one of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from container_runner.agents.python import PythonRuntime
from container_runner.agents.runtime import Command, CommandLineRuntime, Describes, no_words
from container_runner.errors import ConfigError, ContainerRunnerError
from container_runner.options import ExecuteOptions
from container_runner.session.codec import Codec
from container_runner.session.tools import Tool
from container_runner.stream.messages import Message, ResultMessage, parse_line
from container_runner.stream.reader import Reader


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

    def with_server(self, options: ExecuteOptions, name: str, url: str, token: str) -> ExecuteOptions:
        """As it does that, if it can."""
        add: Callable[..., ExecuteOptions] = getattr(self._runtime, "with_server", super().with_server)
        return add(options, name, url, token)

    def with_words(self, options: ExecuteOptions, words: str) -> ExecuteOptions:
        """As it does that, if it can."""
        if (add := getattr(self._runtime, "with_words", None)) is None:
            raise no_words(type(self._runtime).__name__)
        told: ExecuteOptions = add(options, words)
        return told

    def live(self, options: ExecuteOptions, *, asks: bool, tools: Sequence[Tool]) -> Command:
        """As it says, if it has live sessions."""
        make: Callable[..., Command] = getattr(self._runtime, "live", super().live)
        return make(options, asks=asks, tools=tools)

    def codec(self, options: ExecuteOptions, *, asks: bool, tools: Sequence[Tool]) -> Codec:
        """As it says, if it has live sessions."""
        make: Callable[..., Codec] = getattr(self._runtime, "codec", super().codec)
        return make(options, asks=asks, tools=tools)

    def screen(self, options: ExecuteOptions) -> Command:
        """As it says, if it has one."""
        make: Callable[[ExecuteOptions], Command] = getattr(self._runtime, "screen", super().screen)
        return make(options)

    def parse_line(self, line: bytes) -> Message | None:
        """As it reads a line, if it does."""
        parse: Callable[[bytes], Message | None] = getattr(self._runtime, "parse_line", parse_line)
        return parse(line)

    def reader(self, options: ExecuteOptions) -> Reader | None:
        """Its own, if it has one."""
        make: Callable[[ExecuteOptions], Reader | None] = getattr(self._runtime, "reader", super().reader)
        return make(options)

    @property
    def reads_plain(self) -> bool:
        return not (hasattr(self._runtime, "parse_line") or hasattr(self._runtime, "reader"))

    def outcome(self, result: ResultMessage | None, exit_code: int, stderr: str) -> ContainerRunnerError | None:
        """As it judges the end, if it does."""
        judge: Judge = getattr(self._runtime, "outcome", super().outcome)
        return judge(result, exit_code, stderr)


Judge: TypeAlias = Callable[[ResultMessage | None, int, str], ContainerRunnerError | None]


def command_line(runtime: object) -> CommandLineRuntime:
    """Any runtime as one of ours: one that describes its command, or one whose class the container can import.

    Raises:
        ConfigError: it is no runtime.
        UnsupportedRuntimeError: it has `execute` alone, and can not be made in a container.
    """
    if isinstance(runtime, CommandLineRuntime):
        return runtime
    name = runtime.__name__ if isinstance(runtime, type) else type(runtime).__name__
    if isinstance(runtime, type):
        raise ConfigError("runtime", runtime, f"an instance, not the class: {name}(...)")
    if callable(getattr(runtime, "command", None)):
        return DescribedRuntime(runtime)  # type: ignore[arg-type]  # duck typing counts
    if callable(getattr(runtime, "execute", None)):
        return PythonRuntime.of(runtime)
    raise ConfigError("runtime", runtime, "a runtime, such as ClaudeRuntime()")
