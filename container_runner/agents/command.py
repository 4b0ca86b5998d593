"""Any command as an agent."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from container_runner.agents.runtime import Command, CommandLineRuntime
from container_runner.errors import ConfigError
from container_runner.options import ExecuteOptions, check_argument


class CommandRuntime(CommandLineRuntime):
    """Runs a command of yours. Lines of its stdout that are JSON objects become messages, others `OutputLine`.

    Args:
        argv: the program and its arguments; a text is split as a shell splits it. The prompt is not among them: it
            comes on stdin.

    Raises:
        ConfigError: an empty argv, or an argument that no process can be given.
    """

    def __init__(self, argv: str | Iterable[str]) -> None:
        try:
            words = tuple(shlex.split(argv) if isinstance(argv, str) else argv)
        except (TypeError, ValueError):  # it is no list, or a quote has no end
            raise ConfigError("argv", argv, 'words, as ["my-agent", "--fast"] or "my-agent --fast"') from None
        if not words:
            raise ConfigError("argv", words, "a program and its arguments")
        self.argv = tuple(check_argument(f"argv[{index}]", word) if word else word for index, word in enumerate(words))
        if not self.argv[0] or self.argv[0].startswith("-"):
            raise ConfigError("argv[0]", self.argv[0], "the name or path of a program")

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """The command as it was given, with the prompt on its stdin."""
        del contained
        return Command(argv=(*self.argv, *options.agent.args), stdin=options.prompt.encode())

    def screen(self, options: ExecuteOptions) -> Command:
        """The same command. Whether it has a screen is its own."""
        return self.command(options, contained=True)
