"""What a run amounts to: turns, tokens, cost, session, last words."""

from __future__ import annotations

from typing import Any

import pytest

from container_runner.records.tally import OUTPUT_TAIL, Tally
from container_runner.stream.messages import ErrorMessage, OutputLine, parse_message


def tally(*lines: dict[str, Any] | bytes) -> Tally:
    tally = Tally()
    for line in lines:
        tally.add(OutputLine(line) if isinstance(line, bytes) else parse_message(line))
    return tally


def answer(id_: str | None, tokens: int, text: str = "", **fields: Any) -> dict[str, Any]:
    message = {"content": [{"type": "text", "text": text}], "usage": {"output_tokens": tokens}}
    return {"type": "assistant", "message": message | ({"id": id_} if id_ else {}), **fields}


RESULT = {
    "type": "result",
    "subtype": "success",
    "is_error": False,
    "num_turns": 7,
    "total_cost_usd": 0.5,
    "usage": {"input_tokens": 900},
    "result": "All done.",
    "session_id": "abc",
}


def test_an_answer_of_several_lines_is_one_turn_and_counts_once() -> None:
    found = tally(answer("a", 5), answer("a", 8), answer("a", 8), answer("b", 2))

    assert (found.turns, found.tokens) == (2, 10)


def test_answers_without_an_id_count_each() -> None:
    assert tally(answer(None, 5), answer(None, 6)).tokens == 11


def test_subagents_use_tokens_and_no_turns() -> None:
    found = tally(answer("a", 5), answer("b", 7, parent_tool_use_id="t"), answer("a", 6))

    assert (found.turns, found.tokens) == (1, 13)


def test_a_flood_of_answers_is_counted_in_bounded_memory() -> None:
    found = tally(*(answer(str(number), 2) for number in range(1000)))

    assert (found.turns, found.tokens) == (1000, 2000)
    assert len(found._open) <= 64


def test_the_result_holds_for_the_whole_run() -> None:
    found = tally(answer("a", 5, "One moment."), RESULT)

    assert (found.turns, found.tokens, found.cost_usd, found.text) == (7, 900, 0.5, "All done.")
    assert found.session_id == "abc"


def test_without_a_result_the_last_words_are_the_text() -> None:
    found = tally(answer("a", 5, "First."), answer("b", 5, "Last."), answer("c", 1))

    assert (found.text, found.cost_usd) == ("Last.", None)


def test_output_that_is_no_message_is_the_text_of_last_resort() -> None:
    assert tally(b"one", b"tw\xff").text == "one\ntw\N{REPLACEMENT CHARACTER}"
    assert tally(b"noise", answer("a", 1, "words")).text == "words"


def test_only_the_end_of_the_output_is_kept() -> None:
    assert tally(b"x" * 10_000_000).text == "x" * OUTPUT_TAIL
    assert tally(*[b"first"], *[b"x" * 1000] * 100).text.count("\n") == OUTPUT_TAIL // 1001 - 1


@pytest.mark.parametrize("session_id", ["../../etc", "a b", "-x", "", "x" * 200, 7, None, "a\n"])
def test_a_session_that_can_not_be_resumed_is_none(session_id: Any) -> None:
    assert tally({"type": "system", "session_id": session_id}).session_id is None


def test_an_error_is_kept() -> None:
    found = Tally()
    found.add(ErrorMessage(kind="agent", message="It failed.", next_step="Look."))

    assert found.error is not None
    assert found.error.kind == "agent"
