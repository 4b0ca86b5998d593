"""Messages as text: what a tool gave back, where there is little to show."""

from __future__ import annotations

from typing import Any

import pytest

from container_runner.cli.text import MOST_CHANGED, clean, render, tool_result
from container_runner.stream.messages import (
    ApiRetryMessage,
    AssistantMessage,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("", "(no output)"),
        (" \n ", "(no output)"),
        (None, "(no output)"),
        ([], "(no output)"),
        ([{"type": "text", "text": ""}], "(no output)"),
        ([{"type": "image", "source": {}}], "(no text)"),
        ("\n one\n", "one"),
        ("one\ntwo\nthree", "one (+2 lines)"),
    ],
)
def test_what_a_tool_gave_back_is_never_nothing(content: Any, shown: str) -> None:
    assert tool_result(ToolResultBlock(tool_use_id="1", content=content, is_error=False)) == shown


def test_a_result_without_output_is_told_in_a_line() -> None:
    message = UserMessage(content=[ToolResultBlock(tool_use_id="1", content="")])

    assert render(message) == "  └ (no output)"


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (
            {"error_status": 529, "error": "overloaded", "retry_delay_ms": 4200},
            "· The API says 529 (overloaded): try 4 of 10 in 4 s",
        ),
        (
            {"error_status": None, "error": "unknown", "retry_delay_ms": 500},
            "· The API does not answer: try 4 of 10 in 0 s",
        ),
    ],
)
def test_an_api_that_gives_no_answer_is_told(facts: dict[str, Any], told: str) -> None:
    assert render(ApiRetryMessage(subtype="api_retry", attempt=4, max_retries=10, **facts)) == told


@pytest.mark.parametrize("unseen", ["\u00ad", "\u200b", "\u2060", "\ufeff", "\U000e0041", "\u202e", "\x1b"])
def test_nothing_that_is_not_seen_reaches_a_terminal(unseen: str) -> None:
    assert clean(f"rm{unseen} -rf é 漢 👍") == "rm\N{REPLACEMENT CHARACTER} -rf é 漢 👍"


def test_an_edit_is_told_by_its_lines() -> None:
    input_ = {"file_path": "/workspace/a.py", "old_string": "x = 1\ny", "new_string": "x = 2\x1b[2J\ny"}

    told = render(AssistantMessage(content=[ToolUseBlock(name="Edit", input=input_)]))

    assert told == "● Edit a.py\n  - x = 1\n  + x = 2\N{REPLACEMENT CHARACTER}[2J\n    y"


def test_a_long_edit_is_cut() -> None:
    content = "\n".join(map(str, range(MOST_CHANGED + 5)))

    told = render(AssistantMessage(content=[ToolUseBlock(name="Write", input={"file_path": "a", "content": content})]))

    assert told is not None
    assert told.splitlines()[-1] == "    … 5 more lines"
