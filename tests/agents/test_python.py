"""A runtime written in Python, here on the host: the same driver as in a container."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import attrs
import pytest

from container_runner.agents import PythonRuntime
from container_runner.agents.driver import EXIT_CODES, MARK
from container_runner.config.values import Mount
from container_runner.errors import ConfigError, UnsupportedRuntimeError
from container_runner.options import Agent, ExecuteOptions
from container_runner.stream.messages import ErrorMessage, Message, OutputLine, ResultMessage

CODE = """
import asyncio, os, sys
from dataclasses import dataclass


class Greeter:
    def __init__(self, greeting="hello"):
        self.greeting = greeting

    async def execute(self, options):
        print("a word on stdout")
        os.system("echo another")
        yield f"{self.greeting} {options.prompt} {options.agent.name} {sys.argv[1:]}"
        yield {"type": "result", "subtype": "success", "is_error": False}


instance = Greeter("hi")
no_runtime = Greeter.execute


class Plain:
    def execute(self, options):
        return ["a list"]


async def make(greeting):
    return Greeter(greeting)


async def generate(options, words=()):
    yield " ".join([options.prompt, *words])


async def fail(options):
    yield "first"
    try:
        os.environ[options.prompt]
    except KeyError as error:
        raise ValueError("no such thing") from error


async def stopped(options):
    try:
        yield "begun"
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                yield "and more"
    finally:
        with open(options.prompt, "w") as file:
            file.write("closed")


class Inner:
    async def execute(self, options):
        yield ErrorMessage()


class ErrorMessage:
    next_step = ""

    def to_dict(self):
        return {"type": "error", "kind": "command_not_found", "message": "No claude.", "next_step": "Install it."}
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/agent.py").write_text(CODE)
    (tmp_path / "mine/lacking.py").write_text("import no_such_package.at_all\n")
    return tmp_path


async def said(code: Path, name: str, prompt: str = "you", module: str = "mine.agent", **more: Any) -> list[Message]:
    runtime = PythonRuntime(f"{module}:{name}", python_path=code, **more)
    options = ExecuteOptions(prompt=prompt, agent=Agent(name="bot", workspace=code, args=["--fast"]))
    return [message async for message in runtime.execute(options)]


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("Greeter", {}, b"hello you bot ['--fast']"),
        ("Greeter", {"greeting": "good day"}, b"good day you bot ['--fast']"),
        ("make", {"greeting": "salut"}, b"salut you bot ['--fast']"),
        ("instance", {}, b"hi you bot ['--fast']"),
    ],
)
async def test_a_class_a_function_and_an_object_run_and_what_they_print_is_no_message(
    code: Path, name: str, arguments: dict[str, Any], line: bytes
) -> None:
    first, result = await said(code, name, arguments=arguments)

    assert first == OutputLine(line)
    assert isinstance(result, ResultMessage)


async def test_a_generator_function_is_called_with_the_options(code: Path) -> None:
    assert await said(code, "generate", arguments={"words": ["and", "me"]}) == [OutputLine(b"you and me")]


async def failure(code: Path, name: str, **more: Any) -> ErrorMessage:
    error = (await said(code, name, **more))[-1]
    assert isinstance(error, ErrorMessage)
    return error


@pytest.mark.parametrize(
    ("name", "module", "kind", "told"),
    [
        ("x", "no_such", "command_not_found", "There is no Python module 'no_such' in the image."),
        (
            "x",
            "mine.lacking",
            "command_not_found",
            "There is no Python module 'no_such_package' in the image, which mine.lacking imports.",
        ),
        ("Nobody", "mine.agent", "command_not_found", "There is no 'Nobody' in the Python module 'mine.agent'."),
        ("sys.maxsize", "mine.agent", "command_not_executable", "is no runtime: it is a int without execute()."),
        ("Plain", "mine.agent", "command_not_executable", "it is a Plain whose execute() gives a list."),
        ("Greeter.execute", "mine.agent", "agent_failed", "raised TypeError: Greeter.execute() missing 1 required"),
        ("Inner", "mine.agent", "command_not_found", "No claude."),
    ],
)
async def test_what_can_not_run_is_told_in_a_sentence(code: Path, name: str, module: str, kind: str, told: str) -> None:
    error = await failure(code, name, module=module)

    assert error.kind == kind
    assert told in error.message
    assert error.next_step
    assert MARK not in error.stderr


async def test_what_it_raises_is_told_with_its_causes_and_not_with_paths_of_this_machine(code: Path) -> None:
    error = await failure(code, "fail", prompt="NO_SUCH_VARIABLE")

    assert error.message == "mine.agent:fail raised ValueError: no such thing"
    assert "KeyError: 'NO_SUCH_VARIABLE'" in error.stderr
    assert 'File "mine/agent.py", line' in error.stderr
    assert "ValueError: no such thing" in error.stderr
    assert str(code) not in error.stderr
    assert "driver" not in error.stderr


async def test_a_runtime_that_is_stopped_is_closed_although_it_would_go_on(code: Path) -> None:
    closed = code / "closed"
    runtime = PythonRuntime("mine.agent:stopped", python_path=code)
    async with aclosing(runtime.execute(ExecuteOptions(prompt=str(closed), agent=Agent(name="bot")))) as messages:
        assert await anext(messages) == OutputLine(b"begun")

    assert closed.read_text() == "closed"


async def test_a_module_in_the_workspace_takes_no_other_ones_place(code: Path) -> None:
    (code / "workspace").mkdir()
    (code / "workspace/asyncio.py").write_text("raise SystemExit(9)")
    options = ExecuteOptions(prompt="p", agent=Agent(name="bot", workspace=code / "workspace"))

    runtime = PythonRuntime("mine.agent:generate", python_path=code)

    assert [message async for message in runtime.execute(options)] == [OutputLine(b"p")]


def test_in_a_container_it_is_one_command_with_the_request_on_stdin() -> None:
    runtime = PythonRuntime("a.b:C", python_path=["/opt/one", "/opt/two"], arguments={"depth": 3}, kept=["x"])
    options = ExecuteOptions(prompt="p", agent=Agent(name="bot", workspace="/workspace", args=["-v"]))

    command = runtime.command(options, contained=True)

    assert command.argv[:2] == ("python3", "-c")
    assert "\n" in command.argv[2]
    assert command.argv[3:] == ("a.b:C", "-v")
    request = json.loads(command.stdin)
    assert request["arguments"] == {"depth": 3}
    assert request["path"] == ["/container-runner/python/0", "/container-runner/python/1"]
    assert request["options"]["prompt"] == "p"
    assert request["options"]["agent"]["workspace"] == "/workspace"
    assert command.mounts == {
        "python_path[0]": Mount("/opt/one", "/container-runner/python/0", read_only=True),
        "python_path[1]": Mount("/opt/two", "/container-runner/python/1", read_only=True),
    }
    assert command.kept == ("x",)


@pytest.mark.parametrize("name", ["", "mine.agent", "mine agent:x", "a:b:c", ":x", "a:", "../a:x", "-c:x", 3])
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"package\.module:name"):
        PythonRuntime(name)


def test_arguments_that_json_does_not_hold_are_refused() -> None:
    with pytest.raises(ConfigError, match="what JSON can hold"):
        PythonRuntime("a:b", arguments={"x": object()})


@attrs.frozen
class Counter:
    depth: int
    words: list[str] = attrs.field(factory=list)

    async def execute(self, options: ExecuteOptions) -> AsyncIterator[Message]:
        yield OutputLine(b"")


def test_an_object_is_made_again_of_what_its_class_tells() -> None:
    runtime = PythonRuntime.of(Counter(3, ["a"]))

    assert runtime.factory == f"{__name__}:Counter"
    assert runtime.arguments == {"depth": 3, "words": ["a"]}


class Holding:
    def __init__(self) -> None:
        self.connection = object()


def test_an_object_that_holds_more_is_not_carried() -> None:
    for one in (Holding(), Counter(depth=Path("/a"))):  # type: ignore[arg-type]  # what JSON does not hold
        with pytest.raises(UnsupportedRuntimeError) as caught:
            PythonRuntime.of(one)
        assert "an object is not carried into a container" in caught.value.message
        assert f'PythonRuntime("{__name__}:{type(one).__name__}", arguments=' in caught.value.next_step


def test_a_class_that_has_no_name_to_import_is_told_so() -> None:
    class Local:
        pass

    with pytest.raises(UnsupportedRuntimeError, match="can not import its class by name"):
        PythonRuntime.of(Local())


@pytest.mark.parametrize("kind", EXIT_CODES)
def test_a_lost_line_is_made_up_for_by_the_exit_code(kind: str) -> None:
    error = PythonRuntime("a.b:C").outcome(None, EXIT_CODES[kind], "some words")

    assert error is not None
    assert error.stderr == "some words"
    assert error.exit_code == EXIT_CODES[kind]


@pytest.mark.parametrize("line", ["{", "[1]", '{"kind": ["x"]}', '{"kind": "raised", "error": 5}'])
def test_a_line_that_the_driver_never_wrote_is_no_traceback_of_ours(line: str) -> None:
    error = PythonRuntime("a.b:C").outcome(None, 9, f"words\n{MARK}{line}\n")

    assert error is not None
    assert error.message == "The agent exited with code 9."
