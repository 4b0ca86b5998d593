"""Functions of the caller's as tools: their schema, what they are given, and what is told of their failures."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

import anyio
import pytest

from container_runner.errors import ConfigError
from container_runner.session.asks import Image, ToolAnswer, ToolCall
from container_runner.session.threads import Threads
from container_runner.session.tools import Tool, ToolError, call_tool, check_tools, tool


def call(name: str, **given: Any) -> ToolCall:
    return ToolCall(id="1", name=name, input=given)


async def text_of(made: Tool, **given: Any) -> tuple[str, bool]:
    answer = await call_tool([made], call(made.name, **given), 60, Threads())
    (text,) = answer.content
    assert isinstance(text, str)
    return text, answer.is_error


def test_the_schema_is_made_of_the_annotations() -> None:
    @tool
    def find(
        text: Annotated[str, "what is looked for"], most: int = 10, kinds: list[Literal["a", "b"]] | None = None
    ) -> str:
        """Find something.

        Everywhere.
        """
        return text

    assert (find.name, find.description) == ("find", "Find something.\n\nEverywhere.")
    assert find.input_schema == {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "what is looked for"},
            "most": {"type": "integer", "default": 10},
            "kinds": {
                "anyOf": [{"type": "array", "items": {"enum": ["a", "b"]}}, {"type": "null"}],
                "default": None,
            },
        },
        "required": ["text"],
        "additionalProperties": False,
    }


def test_a_tool_may_be_called_otherwise() -> None:
    @tool(name="sum-up", description="Sum up.")
    def total(*, x: int) -> int:
        return x

    assert (total.name, total.description) == ("sum-up", "Sum up.")


@pytest.mark.parametrize(
    ("function", "name"),
    [(lambda x: x, "f"), (lambda *args: args, "f"), (lambda: 1, None), (lambda: 1, "two words"), (lambda: 1, "x" * 65)],
)
def test_what_can_be_no_tool_is_refused(function: Any, name: str | None) -> None:
    with pytest.raises(ConfigError):
        tool(name=name)(function)


def test_an_annotation_that_json_can_not_say_is_refused() -> None:
    def odd(x: complex) -> None:
        """It takes what JSON has not."""

    with pytest.raises(ConfigError, match=r"tool\.odd"):
        tool(odd)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", ("text",)),
        ("\ud83d", ("?",)),
        (None, ("null",)),
        ({"a": [1]}, ('{"a":[1]}',)),
        (["a", Image(b"x")], ("a", Image(b"x"))),
        (ToolAnswer(content=("no",), is_error=True), ("no",)),
    ],
)
async def test_what_a_tool_returns_is_told(anyio_backend: str, value: Any, expected: tuple[Any, ...]) -> None:
    @tool
    async def give() -> Any:
        return value

    assert (await call_tool([give], call("give"), 60, Threads())).content == expected


async def test_a_tool_has_so_long_and_its_own_timeouts_are_failures(anyio_backend: str) -> None:
    @tool
    async def wait() -> None:
        await anyio.sleep_forever()

    @tool
    async def give_up() -> None:
        raise TimeoutError

    assert await call_tool([wait], call("wait"), 0, Threads()) == ToolAnswer(
        content=("The tool took too long.",), is_error=True
    )
    assert await text_of(give_up) == ("The tool has failed (TimeoutError).", True)


async def test_a_tool_gets_what_its_annotations_say(anyio_backend: str) -> None:
    @tool
    def add(x: int, y: int = 2) -> int:
        return x + y

    assert await text_of(add, x=40) == ("42", False)
    told, is_error = await text_of(add, x="forty")
    assert is_error
    assert "Expected `int`, got `str`" in told
    assert (await text_of(add, x=1, z=1))[1]
    assert (await text_of(add))[1]


async def test_of_a_failure_the_agent_hears_no_more_than_that(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    @tool
    def read() -> str:
        raise OSError("/home/me/secret")

    with caplog.at_level(logging.WARNING):
        assert await text_of(read) == ("The tool has failed (OSError).", True)

    assert "/home/me/secret" in caplog.text


async def test_a_tool_may_say_what_went_wrong(anyio_backend: str) -> None:
    @tool
    async def find(key: str) -> str:
        raise ToolError(f"There is no {key}.")

    assert await text_of(find, key="x") == ("There is no x.", True)


async def test_what_json_can_not_hold_is_a_failure(anyio_backend: str) -> None:
    @tool
    def give() -> object:
        return object()

    assert (await text_of(give))[1]


def test_what_is_no_tool_is_refused() -> None:
    def plain() -> None: ...

    with pytest.raises(ConfigError, match="with @container_runner"):
        check_tools([plain])


def test_two_tools_of_one_name_are_refused() -> None:
    @tool
    def one() -> None: ...

    with pytest.raises(ConfigError, match="names that no two of them have"):
        check_tools([one, one])
