"""Conversations for people: as plain lines, as Markdown, and in colour."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs

from container_runner.cli.logs import local_time
from container_runner.cli.text import change_lines, clean, line
from container_runner.records import transcript
from container_runner.records.figures import duration, taken

if TYPE_CHECKING:
    from rich.console import Console

RESULT_LINES: Final = 12
"""Lines of a tool's result that are shown."""

TEXT_LIMIT: Final = 64 * 1024
"""Characters of a text that are rendered as Markdown."""

DIFF_LINES: Final = 60
"""Lines of a tool's changes that are shown."""


def to_dict(part: transcript.Part) -> dict[str, Any]:
    """A part as JSON has it: the run's summary, and the items with their types."""
    summary = None if part.summary is None else part.summary.to_dict()
    return {"summary": summary, "items": [_item_dict(item) for item in part.conversation.items]}


def _item_dict(item: transcript.Item) -> dict[str, Any]:
    words = re.findall(r"[A-Z][a-z]*", type(item).__name__)
    fields = attrs.asdict(item, recurse=False, filter=attrs.filters.exclude("details", "items"))
    shown = {"type": "_".join(words).lower(), **fields}
    if isinstance(item, transcript.Done):
        shown["result"] = item.result.raw
    if isinstance(item, transcript.ToolCall):
        shown["seconds"] = item.seconds
        shown["changes"] = [
            {"start": change.start, "lines": [f"{mark}{text}" for mark, text in change.lines]}
            for change in item.changes
        ]
        shown["items"] = [_item_dict(inner) for inner in item.items]
    return shown


def plain(parts: Sequence[transcript.Part]) -> Iterator[str]:
    """Conversations as lines without colour, none of them wrapped."""
    for part in parts:
        yield _part_head(part)
        for item in part.conversation.items:
            yield ""
            yield from _plain_item(item, "")
        yield ""


def _part_head(part: transcript.Part) -> str:
    summary = part.summary
    if summary is None:
        return "· from the agent's own record of the session"
    facts = [f"run {summary.run_id[:12]} of {summary.agent}", local_time(summary.started)]
    facts += [summary.kind or summary.outcome]
    facts += [duration(summary.duration)] if summary.duration is not None else []
    facts += taken(cost_usd=summary.cost_usd)
    return f"· {clean(', '.join(facts))}"


def _plain_item(item: transcript.Item, indent: str) -> Iterator[str]:
    for text in _item_lines(item):
        yield f"{indent}{text}"
    if isinstance(item, transcript.ToolCall):
        for inner in item.items:
            yield from _plain_item(inner, f"{indent}    ")


def _item_lines(item: transcript.Item) -> Iterator[str]:
    match item:
        case transcript.Prompt(text=text):
            yield from (f"> {row}" for row in clean(text).splitlines())
        case transcript.Text(text=text) | transcript.Output(text=text):
            yield from clean(text).strip("\n").splitlines()
        case transcript.Thinking(text=text):
            yield from (f"~ {row}" for row in clean(text).strip("\n").splitlines())
        case transcript.ToolCall():
            yield f"● {line(item.name)} {line(item.title)}{_took(item)}".rstrip()
            yield from (f"  {mark} {text}".rstrip() for mark, text in change_lines(item.changes, DIFF_LINES))
            yield from (f"  {mark} {row}".rstrip() for mark, row in result_lines(item))
        case transcript.Notice(text=text):
            yield f"· {line(text)}"
        case transcript.Failure():
            yield f"✗ {clean(item.message)}"
            yield from clean(item.stderr).splitlines()
            yield f"  {clean(item.next_step)}"
        case transcript.Done():
            yield done_line(item)


def done_line(item: transcript.Done) -> str:
    """How the agent ended its work."""
    result = item.result
    facts = ["failed" if result.is_error else "succeeded"]
    facts += taken(turns=result.num_turns, cost_usd=result.total_cost_usd)
    facts += [line(error) for error in result.errors[:5]]
    return f"{'✗' if result.is_error else '✓'} {', '.join(facts)}"


def result_lines(call: transcript.ToolCall) -> list[tuple[str, str]]:
    """The lines of a tool's result, up to `RESULT_LINES`, the first of them marked; none where its changes tell all."""
    if call.result is None:
        rows = ["(no result)"]
    elif call.changes and not call.is_error:
        return []
    else:
        rows = clean(call.result.strip("\n")).splitlines() or ["(nothing)"]
    if len(rows) > RESULT_LINES:
        rows = [*rows[:RESULT_LINES], f"… {len(rows) - RESULT_LINES} more lines"]
    first = "✗" if call.is_error else "└"
    return [(" " if number else first, row) for number, row in enumerate(rows)]


def _took(call: transcript.ToolCall) -> str:
    return "" if call.seconds is None else f"  ({duration(call.seconds)})"


def markdown(parts: Sequence[transcript.Part]) -> Iterator[str]:
    """Conversations as lines of Markdown. The agent's own texts are Markdown already and stay as they are."""
    for number, part in enumerate(parts, 1):
        if len(parts) > 1:
            yield f"# Run {number}\n"
        if part.summary is not None:
            yield f"{_part_head(part).removeprefix('· ')}\n"
        for item in part.conversation.items:
            yield from _markdown_item(item)


def _markdown_item(item: transcript.Item) -> Iterator[str]:
    match item:
        case transcript.Prompt(text=text):
            yield f"## Prompt\n\n{_fenced(text)}\n"
        case transcript.Text(text=text):
            yield f"{clean(text)}\n"
        case transcript.Thinking(text=text):
            yield "\n".join(f"> {row}".rstrip() for row in clean(text).splitlines()) + "\n"
        case transcript.ToolCall():
            yield f"### {line(item.name)}{_took(item)}\n"
            if item.changes:
                yield f"{_code(item.title)}\n"
                yield (
                    _fenced("\n".join(f"{mark}{text}" for mark, text in change_lines(item.changes, DIFF_LINES)), "diff")
                    + "\n"
                )
            elif item.title:
                yield f"{_fenced(item.title)}\n"
            if rows := result_lines(item):
                yield "It failed:\n" if item.is_error else "Result:\n"
                yield _fenced("\n".join(row for _, row in rows)) + "\n"
            for inner in item.items:
                yield from _markdown_item(inner)
        case transcript.Output(text=text):
            yield f"{_fenced(text)}\n"
        case _:
            yield "\n".join(_item_lines(item)) + "\n"


def _fenced(text: str, language: str = "") -> str:
    """A code block that the text can not end."""
    fence = "`" * max(3, _ticks(text) + 1)
    return f"{fence}{language}\n{clean(text).rstrip()}\n{fence}"


def _ticks(text: str) -> int:
    """How many backticks stand together at the most."""
    return max(map(len, re.findall("`+", text)), default=0)


def _code(text: str) -> str:
    ticks = "`" * (1 + _ticks(text))
    return f"{ticks} {line(text)} {ticks}" if "`" in text else f"`{line(text)}`"


def print_rich(parts: Sequence[transcript.Part], console: Console | None = None) -> None:
    """Print conversations in colour, wrapped to the window."""
    from rich.console import Console

    console = console or Console(highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(_part_head(part), style="dim")
        for item in part.conversation.items:
            console.print()
            _print_item(console, item, 0)
        console.print()


def _print_item(console: Console, item: transcript.Item, indent: int) -> None:
    from rich.markdown import Markdown
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.text import Text as Styled

    shown: Any
    match item:
        case transcript.Prompt(text=text):
            shown = Panel(Styled(clean(text).rstrip()), border_style="cyan", title="prompt", title_align="left")
        case transcript.Text(text=text):
            # More than that would take the renderer more than a moment.
            shown = Markdown(clean(text), hyperlinks=False) if len(text) <= TEXT_LIMIT else Styled(clean(text))
        case transcript.Thinking(text=text):
            shown = Styled(clean(text).rstrip(), style="dim italic")
        case transcript.ToolCall():
            shown = Styled.assemble(
                ("● ", "red" if item.is_error else "green"),
                (line(item.name), "bold"),
                f" {line(item.title)}",
                (_took(item), "dim"),
            )
            for mark, text in change_lines(item.changes, DIFF_LINES):
                style = {"+": "green", "-": "red"}.get(mark, "dim")
                shown.append(f"\n  {mark} {text}", style=style)
            for mark, row in result_lines(item):
                shown.append(f"\n  {mark} {row}", style="red" if item.is_error else "dim")
        case transcript.Failure():
            shown = Styled("\n".join(_item_lines(item)), style="red")
        case transcript.Done():
            shown = Styled(done_line(item), style="bold red" if item.result.is_error else "bold green")
        case _:
            shown = Styled("\n".join(_item_lines(item)), style="dim")
    console.print(Padding(shown, (0, 0, 0, indent)))
    if isinstance(item, transcript.ToolCall):
        for inner in item.items:
            _print_item(console, inner, indent + 4)
