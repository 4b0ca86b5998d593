"""Agents that speak a dialect of their own: what a caller gets of them is what claude would have said."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.stream.messages import (
    AssistantMessage,
    OutputLine,
    ResultMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UnknownMessage,
    UserMessage,
    parse_line,
)
from container_runner.stream.reader import Folded, Reader, answered, called, ended, gave, part, text, used


class Shouts(Reader):
    """A dialect of three words: "hello" begins, "do" is a call with its result, "say" is text."""

    types = frozenset({"hello", "do", "say"})

    def __init__(self) -> None:
        super().__init__()
        self.last = ""

    def fold(self, raw: dict[str, Any]) -> Iterable[Folded] | None:
        match raw.get("type"):
            case "hello":
                self.session_id = str(raw.get("id"))
                return []
            case "do":
                return [answered(called("1", "shell", {"command": raw.get("what")})), gave("1", "done", is_error=False)]
            case "say":
                self.last = str(raw.get("text"))
                return [answered(text(self.last))]
            case _:
                return None

    def fold_end(self) -> Folded | None:
        return ended(self.last, usage=used(100, 20, read=10)) if self.last else None


def test_a_line_is_none_one_or_several_messages_with_the_session() -> None:
    reader = Shouts()

    assert reader.read(b'{"type": "hello", "id": "s1"}') == []
    call, result = reader.read(b'{"type": "do", "what": "ls"}')
    (said,) = reader.read(b'{"type": "say", "text": "All done."}')

    assert isinstance(call, AssistantMessage)
    assert call.content == [ToolUseBlock(id="1", name="shell", input={"command": "ls"})]
    assert isinstance(result, UserMessage)
    assert result.content == [ToolResultBlock(tool_use_id="1", content="done")]
    assert isinstance(said, AssistantMessage)
    assert said.content == [TextBlock("All done.")]
    assert {message.session_id for message in (call, result, said)} == {"s1"}
    assert said.usage is None, "it did not say"


def test_what_the_agent_wrote_stays_with_the_first_message_of_its_line() -> None:
    call, result = Shouts().read(b'{"type": "do", "what": "ls", "more": [1]}')

    assert isinstance(call, AssistantMessage)
    assert isinstance(result, UserMessage)
    assert call.original == {"type": "do", "what": "ls", "more": [1]}
    assert result.original is None
    assert call.raw["type"] == "assistant"
    for message in (call, result):
        assert parse_line(message.to_json()) == message
        assert pickle.loads(pickle.dumps(message)) == message


def test_a_line_that_is_not_known_is_kept_and_one_that_is_no_object_is_output() -> None:
    (unknown,) = Shouts().read(b'{"type": "assistant", "message": "not claude"}')

    assert isinstance(unknown, UnknownMessage)
    assert unknown.raw == {"type": "assistant", "message": "not claude"}
    assert Shouts().read(b"plain") == [OutputLine(b"plain")]
    assert Shouts().read(b"  ") == []


def test_the_end_of_the_lines_may_be_a_result() -> None:
    reader = Shouts()
    assert reader.end() == []

    reader.read(b'{"type": "say", "text": "Bye."}')
    (result,) = reader.end()

    assert isinstance(result, ResultMessage)
    assert (result.result, result.is_error, result.errors) == ("Bye.", False, [])
    assert (result.num_turns, result.total_cost_usd, result.duration_ms) == (None, None, None), "it did not say"
    assert result.usage is not None
    assert (result.usage.input_tokens, result.usage.cache_read_input_tokens, result.usage.total) == (90, 10, 120)


@pytest.mark.parametrize("value", [None, -1, True, "12", 1.5, 2**70])
def test_a_count_that_is_none_is_nothing(value: Any) -> None:
    assert used(value, value, read=value) == {
        **dict.fromkeys(("input_tokens", "output_tokens"), 0),
        **dict.fromkeys(("cache_read_input_tokens", "cache_creation_input_tokens"), 0),
    }


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_what_stands_below_names_is_an_object_whatever_is_there(value: Any) -> None:
    assert isinstance(part({"a": value}, "a", "b"), dict)
