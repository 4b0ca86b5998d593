"""Messages as text: what a tool gave back, where there is little to show."""

from __future__ import annotations

from typing import Any

import pytest

from container_runner.cli.text import render, tool_result
from container_runner.stream.messages import ToolResultBlock, UserMessage


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
