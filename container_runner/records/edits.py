"""What a tool call changed in a file, as the tool says or as its input lets us see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, TypeAlias, get_args

import attrs

DIFF_LIMIT: Final = 500
"""Lines of text on either side that are compared; more are shown as removed and added."""

Mark: TypeAlias = Literal["+", "-", " "]
"""What happened to a line: added, removed, or nothing."""


@attrs.frozen(kw_only=True)
class Change:
    """Lines of a file that changed together."""

    start: int | None
    """The number of the first line before the change, from 1; None if it is not known."""

    lines: tuple[tuple[Mark, str], ...]
    """Each line, with what happened to it."""


def edits(tool: str, given: dict[str, Any], details: Any) -> list[Change]:
    """The changes that a call of *tool* with the input *given* made.

    Args:
        details: the result as the tool itself describes it. What it says of changes is preferred.
    """
    match details:
        case {"structuredPatch": list(hunks)} if patch := [change for hunk in hunks if (change := _hunk(hunk))]:
            return patch
    match tool, given:
        case ("Write", {"content": str(new)}) | ("NotebookEdit", {"new_source": str(new)}):
            return _compare("", new)
        case "Edit", {"old_string": str(old), "new_string": str(new)}:
            return _compare(old, new)
        case "MultiEdit", {"edits": list(steps)}:
            return [change for step in steps if isinstance(step, dict) for change in edits("Edit", step, None)]
        case _:
            return []


def _hunk(raw: Any) -> Change | None:
    """A hunk as claude describes it."""
    match raw:
        case {"lines": list(lines)}:
            texts = [line for line in lines if isinstance(line, str)]
            marked = [(m, text[1:]) for text in texts for m in get_args(Mark) if text.startswith(m)]
            start = raw.get("oldStart")
            return Change(start=start if isinstance(start, int) else None, lines=tuple(marked)) if marked else None
        case _:
            return None


def _compare(old: str, new: str) -> list[Change]:
    before, after = old.splitlines(), new.splitlines()
    groups: Iterable[list[tuple[str, int, int, int, int]]] = [[("replace", 0, len(before), 0, len(after))]]
    if max(len(before), len(after)) <= DIFF_LIMIT:  # the comparison takes more than linear time
        import difflib  # slow to import, and only an edit needs it

        groups = difflib.SequenceMatcher(None, before, after).get_grouped_opcodes()
    return [Change(start=None, lines=tuple(_opcode_lines(group, before, after))) for group in groups]


def _opcode_lines(
    opcodes: list[tuple[str, int, int, int, int]], before: list[str], after: list[str]
) -> Iterator[tuple[Mark, str]]:
    for tag, start, end, new_start, new_end in opcodes:
        if tag == "equal":
            yield from ((" ", line) for line in before[start:end])
        else:
            yield from (("-", line) for line in before[start:end])
            yield from (("+", line) for line in after[new_start:new_end])
