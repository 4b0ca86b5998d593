"""What a tool call changed in a file is told, whatever shape the call and its result have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.records.edits import DIFF_LIMIT, Change, edits

JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@pytest.mark.parametrize(
    ("tool", "asked", "lines"),
    [
        ("Write", {"content": "a\nb"}, [("+", "a"), ("+", "b")]),
        ("NotebookEdit", {"new_source": "x"}, [("+", "x")]),
        ("Edit", {"old_string": "a\nb", "new_string": "a\nc"}, [(" ", "a"), ("-", "b"), ("+", "c")]),
        ("MultiEdit", {"edits": [{"old_string": "a", "new_string": "b"}, 7]}, [("-", "a"), ("+", "b")]),
        ("Edit", {"old_string": 1, "new_string": "a"}, []),
        ("Bash", {"content": "a"}, []),
    ],
)
def test_the_input_of_a_tool_tells(tool: str, asked: dict[str, Any], lines: list[tuple[str, str]]) -> None:
    assert [line for change in edits(tool, asked, None) for line in change.lines] == lines


def test_what_the_tool_itself_says_is_preferred() -> None:
    patch = {"structuredPatch": [{"oldStart": 7, "lines": ["-a", "+b", "", "?", 5]}, {"lines": "none"}, {"lines": []}]}

    assert edits("Write", {"content": "x"}, patch) == [Change(start=7, lines=(("-", "a"), ("+", "b")))]


def test_long_texts_are_not_compared() -> None:
    old, new = "a\n" * (DIFF_LIMIT + 1), "b\n"

    (change,) = edits("Edit", {"old_string": old, "new_string": new}, None)

    assert len(change.lines) == DIFF_LIMIT + 2


@given(st.sampled_from(["Write", "Edit", "MultiEdit", "NotebookEdit"]), st.dictionaries(st.text(), JSON), JSON)
def test_no_shape_of_it_raises(tool: str, asked: dict[str, Any], details: Any) -> None:
    edits(tool, asked, details)
    edits(tool, {"edits": asked, "content": details}, {"structuredPatch": details})
