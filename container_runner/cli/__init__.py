"""The `container-runner` command."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from container_runner.cli.surroundings import nameless, open_what_is_closed, what_was_met
from container_runner.errors import ConfigError, ContainerRunnerError, StateError

if TYPE_CHECKING:
    from cyclopts import CycloptsError

_TYPED = {
    "agent.workspace": "--workspace",
    "agent.name": "--agent",
    "resume": "--resume",
    "session_id": "--session-id",
    "jobs": "--jobs",
    "on": "--on",
    "factory": "--python",
    **{f"python_path[{index}]": "--python-path" for index in range(16)},
    "retries": "--retries",
    "total_budget_usd": "--total-budget-usd",
}
"""Fields that are no part of the configuration, by what a command line calls them."""

HABITS = {
    "--allowedTools": "--allowed-tools",
    "--dangerously-skip-permissions": "--permission-mode=bypassPermissions",
    "--disallowedTools": "--disallowed-tools",
    "--name": "--agent",
    "--output-format=stream-json": "--json",
    "--rm": "--ephemeral",
    "-c": "--continue",
    "-e": "--env",
    "-p": "--port",
    "-r": "--resume",
    "-u": "--user",
    "-v": "--volume",
}
"""Flags of docker and claude that mean the same here, by what they are called here."""


def main(words: list[str] | None = None) -> NoReturn:
    """Run the command and exit with its code: 0 for success, or the `cli_exit_code` of the error.

    Args:
        words: the command line without the program's name. None: that of this process.
    """
    open_what_is_closed()
    code = run_command(sys.argv[1:] if words is None else words)
    if words is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C must not change how we end
    sys.exit(code)


def run_command(words: list[str]) -> int:
    """Run a command line, and return the exit code."""
    try:
        return _run(words)
    except ContainerRunnerError as error:
        _complain(str(_as_typed(error) if isinstance(error, ConfigError) else error))
        return error.cli_exit_code
    except _refusal() as error:
        from container_runner.cli.app import refusal

        _complain(refusal(error))
        return 2
    except (OSError, RecursionError, BaseExceptionGroup) as error:
        if (told := what_was_met(error)) is None:
            raise
        # It was most likely our output. Python would complain once more when it flushes at its end.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  it stays open to the end, as stdout does
        if isinstance(told, BrokenPipeError):  # whoever read it has left
            return 141
        if isinstance(told, RecursionError):
            _complain("Something that an agent wrote is nested too deeply to be shown.")
            return 1
        _complain(f"{told.filename or nameless()}: {told.strerror}.")
        return StateError.cli_exit_code
    except KeyboardInterrupt:
        return 130


def _refusal() -> type[CycloptsError]:
    """What a command line that is wrong raises. It is slow to import, and only asked for when something was raised."""
    from cyclopts import CycloptsError

    return CycloptsError


def _run(words: list[str]) -> int:
    if words == ["--version"]:  # the one thing that scripts ask before anything else
        from container_runner import __version__

        print(__version__, flush=True)
        return 0
    from container_runner.cli.app import app, show_all

    if "--help-all" in words:
        show_all()
        words = ["--help" if word == "--help-all" else word for word in words]
    if words[:1] == ["help"]:  # as other programs have it
        words = [*words[1:], "--help"]
    # Scripts may say that nobody is there to answer. Only `chat` ever asks, at a terminal.
    words = [word for number, word in enumerate(words) if word != "--no-input" or "--" in words[:number]]
    if words[:1] in (["run"], ["chat"], ["argv"], ["batch"]):
        end = words.index("--") if "--" in words else len(words)
        words = [*_usual(words[:end]), *words[end:]]
        # The parser takes a lone dash for an option without a name.
        name = "file" if words[0] == "batch" else "prompt"
        words = [f"--{name}=-" if word == "-" else word for word in words]
    code: int = app(words, exit_on_error=False, print_error=False, result_action="return_value") or 0
    sys.stdout.flush()  # a disk that is full is told of here, and not by Python at its end
    return code


def _usual(words: list[str]) -> Iterator[str]:
    """The words of a command line as they are spelled here."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if word == "-p" and not re.fullmatch(r"[\w.:\[\]]*\d(/\w+)?", following):
            continue  # claude's: print what it says, as is done here anyway
        yield HABITS.get(word) or (f"{HABITS[name]}{equals}{value}" if name in HABITS else word)


def _as_typed(error: ConfigError) -> ConfigError:
    """The same error, with the field called as the person who reads it has typed it."""
    from container_runner.config.fields import FIELDS
    from container_runner.config.tiers import line_of

    source, name = error.source, error.field.removeprefix("agent.")
    bare = re.sub(r"[.\[].*", "", name)
    if source is None or source in ("command line", "default") or source.startswith("--"):
        from container_runner.cli.flags import typed

        return error.called(typed(bare) if bare in FIELDS else _TYPED.get(error.field, error.field))
    if source.startswith("environment "):
        return error.called(source.removeprefix("environment "))
    if found := re.fullmatch(r"(.+?\.toml)(?: \[([\w.-]+)\])?", source):
        file, table = found.groups("")
        return error.called(name, source=file, at=error.at or line_of(file, table, bare))
    # A file of jobs, whose keys have no dashes.
    return error.called(_TYPED.get(name, name).removeprefix("--").replace("-", "_"), source=source)


def _complain(text: str) -> None:
    from container_runner.cli.text import clean

    print(f"container-runner: {clean(text)}", file=sys.stderr)
