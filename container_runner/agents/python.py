"""A runtime written in Python, run in the container."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from container_runner.agents.runtime import Command, CommandLineRuntime, Credentials, appended
from container_runner.config import paths
from container_runner.config.values import Mount
from container_runner.errors import (
    AgentFailedError,
    CommandNotExecutableError,
    CommandNotFoundError,
    ConfigError,
    ContainerRunnerError,
    UnsupportedRuntimeError,
    error_class,
)
from container_runner.folders import expanded
from container_runner.options import ExecuteOptions, check_argument
from container_runner.stream.messages import Message, OutputLine, ResultMessage, parse_line

_NAME: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_OUTPUT: Final = b'{"type": "output", "text": '


@functools.cache
def driver() -> str:
    """What runs in the container: see `container_runner.agents.driver`."""
    return Path(__file__).with_name("driver.py").read_text("utf-8")


INSTALL: Final = "Install it in the image, or name the folder that it is in with python_path (--python-path)."


class PythonRuntime(CommandLineRuntime):
    """Runs an object of yours in the container that has `execute(options)` and gives an async iterator of messages.

    The image needs Python 3.11 or newer and what your code imports. This package need not be in it.

    Args:
        factory: "package.module:name": a class, a function that returns the object, the object itself, or an async
            generator function that is called with the options.
        python: the image's Python, by name or path. Default: python3; on the host, the one that runs this.
        python_path: folders of this machine from which the code may import, mounted read-only and looked through first.
        arguments: what the class or function is called with, by name: values that JSON can hold.
        credentials: where the login of its agent is found on the host. Default: none is looked for.
        kept: the folders in /container-runner/sessions that its next run finds again. None: all of it. Default: none.

    Raises:
        ConfigError: a value that we refuse.
    """

    def __init__(
        self,
        factory: str,
        *,
        python: str | None = None,
        python_path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
        arguments: Mapping[str, Any] | None = None,
        credentials: Credentials | None = None,
        kept: Iterable[str] | None = (),
    ) -> None:
        names = str(factory).split(":")
        if len(names) != 2 or not all(map(_NAME.fullmatch, names)):
            raise ConfigError("factory", factory, '"package.module:name", as "reviewer.agent:Reviewer"')
        self.factory = factory
        self.python = None if python is None else check_argument("python", python)
        folders = [python_path] if isinstance(python_path, str | os.PathLike) else list(python_path)
        self.python_path = tuple(
            str(expanded(folder, f"python_path[{index}]").absolute()) for index, folder in enumerate(folders)
        )
        self.arguments = dict(arguments or {})
        self.credentials = credentials or Credentials()
        self.kept = None if kept is None else tuple(kept)
        try:
            json.dumps(self.arguments, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError("arguments", "…", f"what JSON can hold ({error})") from None

    @classmethod
    def of(cls, runtime: object) -> PythonRuntime:
        """The runtime that makes an object like *runtime* in the container.

        Only what a class tells can be told there: no object is ever pickled. Its module must be importable in the
        image.

        Raises:
            UnsupportedRuntimeError: its class can not be imported by name, or it holds more than its class tells.
        """
        kind = type(runtime)
        name = f"{kind.__module__}:{kind.__qualname__}"
        if kind.__module__ == "__main__" or not _NAME.fullmatch(kind.__qualname__):
            message = f"{kind.__name__} has only `execute`, and a container can not import its class by name."
            step = (
                "Move the class into a module that the image has or that python_path names, and give "
                f'PythonRuntime("package.module:{kind.__name__}"); or give it a method `command`, as ClaudeRuntime has.'
            )
            raise UnsupportedRuntimeError(message, next_step=step)
        return cls(name, arguments=_arguments(runtime, name))

    def with_words(self, options: ExecuteOptions, words: str) -> ExecuteOptions:
        """In the options that the object gets."""
        return appended(options, words)

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        """Python with our driver, which gets the options on stdin."""
        path = [f"{paths.PYTHON}/{index}" for index in range(len(self.python_path))]
        request = {
            "options": attrs.asdict(options),
            "arguments": self.arguments,
            "path": path if contained else self.python_path,
        }
        python = self.python or ("python3" if contained else sys.executable)
        return Command(
            argv=(python, "-c", driver(), self.factory, *options.agent.args),
            stdin=json.dumps(request, default=_plain).encode(),
            credentials=self.credentials,
            kept=self.kept,
            mounts={
                f"python_path[{index}]": Mount(source, target, read_only=True)
                for index, (source, target) in enumerate(zip(self.python_path, path, strict=True))
            },
        )

    def parse_line(self, line: bytes) -> Message | None:
        """One line of the driver's as a message."""
        if line.startswith(_OUTPUT):
            try:
                return OutputLine(orjson.loads(line)["text"].encode())
            except (orjson.JSONDecodeError, AttributeError):  # what else would write such a line
                return OutputLine(line)
        return parse_line(line)

    def outcome(self, result: ResultMessage | None, exit_code: int, stderr: str) -> ContainerRunnerError | None:
        """As the driver tells it on the last line of stderr; if that is lost, by its exit code."""
        from container_runner.agents import driver  # it imports asyncio, which takes a while

        stderr, facts = _told(stderr, driver.MARK)
        if exit_code == 0:
            return super().outcome(result, exit_code, stderr)
        kind = facts.get("kind") or next((kind for kind, code in driver.EXIT_CODES.items() if code == exit_code), "")
        module, _, name = self.factory.partition(":")
        found = facts.get("found", "what it stands for")
        match kind:
            case "too_old":
                oldest = ".".join(map(str, driver.OLDEST))
                message = f"The image's Python {facts.get('version', '')} is too old."
                step = f"Use an image with Python {oldest} or newer, or name another one of its Pythons with `python`."
                return CommandNotExecutableError(message, next_step=step, exit_code=exit_code, stderr=stderr)
            case "no_module":
                lacking = facts.get("module", module)
                needed = "" if f"{module}.".startswith(f"{lacking}.") else f", which {module} imports"
                message = f"There is no Python module {lacking!r} in the image{needed}."
                return CommandNotFoundError(message, next_step=INSTALL, exit_code=exit_code, stderr=stderr)
            case "no_attribute":
                message = f"There is no {facts.get('attribute', name)!r} in the Python module {module!r}."
                step = "Name a class, a function or an object of that module, as package.module:Name."
                return CommandNotFoundError(message, next_step=step, exit_code=exit_code, stderr=stderr)
            case "not_a_runtime":
                yields = f"whose execute() gives a {facts['yields']}" if "yields" in facts else "without execute()"
                message = f"{self.factory} is no runtime: it is a {found} {yields}."
                step = "Give it `async def execute(self, options)` that yields messages."
                return CommandNotExecutableError(message, next_step=step, exit_code=exit_code, stderr=stderr)
            case "raised" if "error" in facts:
                message = f"{self.factory} raised {facts['error']}"
                step = "The end of its traceback is above: it is an error in that code, or in what it uses."
                return AgentFailedError(message, next_step=step, exit_code=exit_code, stderr=stderr)
            case "failed" if facts.get("message"):
                # It has run another runtime of ours in there, which tells the rest.
                of = error_class(facts.get("error_kind", ""))
                failed = of if of in (CommandNotFoundError, CommandNotExecutableError) else AgentFailedError
                advice = facts.get("next_step") or None
                return failed(facts["message"], next_step=advice, exit_code=exit_code, stderr=stderr)
        return super().outcome(result, exit_code, stderr)


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else str(value)


def _told(stderr: str, mark: str) -> tuple[str, dict[str, str]]:
    """What the user's code wrote to stderr, and what the driver told behind it, after *mark*."""
    rest, mark, line = stderr.rpartition(f"\n{mark}")
    if not mark:
        return stderr, {}
    line, _, after = line.partition("\n")
    try:
        facts = orjson.loads(line)
    except orjson.JSONDecodeError:
        return stderr, {}
    if not isinstance(facts, dict):
        return stderr, {}
    if isinstance(inner := facts.get("error"), dict):
        facts |= {**inner, "kind": "failed", "error_kind": inner.get("kind")}
    return rest + after, {key: value[:500] for key, value in facts.items() if isinstance(value, str)}


def _arguments(runtime: object, name: str) -> dict[str, Any]:
    """What an object's class is called with to make its like: the fields of a dataclass or of attrs.

    Raises:
        UnsupportedRuntimeError: it holds something else, or what JSON does not.
    """
    kind = type(runtime)
    state = dict(vars(runtime)) if hasattr(runtime, "__dict__") else {}
    fields: Iterable[Any] = getattr(kind, "__attrs_attrs__", getattr(kind, "__dataclass_fields__", {}).values())
    given = {
        getattr(field, "alias", None) or field.name: getattr(runtime, field.name) for field in fields if field.init
    }
    unknown = state.keys() - {field.name for field in fields}
    try:
        same = json.loads(json.dumps(given)) == given
    except (TypeError, ValueError, RecursionError):
        same = False
    if unknown or not same:
        message = f"{kind.__name__} holds values in this process, and an object is not carried into a container."
        step = f'Give PythonRuntime("{name}", arguments={{...}}), which calls {kind.__name__}(**arguments) in there.'
        raise UnsupportedRuntimeError(message, next_step=step)
    return given
