"""Messages as text for people. What an agent writes is hostile: it must not reach the terminal's controls."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from container_runner.config import paths
from container_runner.config.hosts import host_name
from container_runner.records.edits import Change, edits
from container_runner.records.figures import duration, taken
from container_runner.records.tally import Tally
from container_runner.records.transcript import retry_told
from container_runner.stream import messages
from container_runner.stream.blocks import tool_title
from container_runner.stream.lines import OversizedLine

if TYPE_CHECKING:
    from container_runner.fleet.job import JobResult

MOST_CHANGED = 20
"""Lines of a tool's changes that are shown while an agent works."""

WIDTH = 160
"""Characters of a tool call or its result that are shown."""

_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
# Controls, what is not seen, turns the direction of text or ends a line unseen, and halves of surrogate pairs, which
# file names that are not UTF-8 have in Python and which no output takes.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = WIDTH


def clean(text: str) -> str:
    """*text* without characters that could control a terminal or reorder what it shows."""
    if "\x1b" in text:
        text = _COLOURS.sub("", text)
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def line(text: str, width: int = WIDTH) -> str:
    """The beginning of *text*, cleaned, on one line."""
    text = clean(" ".join(text[: 8 * width].split()))
    return text if len(text) <= width else f"{text[:width]}…"


def render(message: messages.Message) -> str | None:
    """A message as one or more lines, or None for one that tells a person nothing."""
    match message:
        case messages.UserMessage(tool_use_result={"structuredPatch": _}) if not _failed(message):
            return None  # the lines of an edit were told when it was called
        case messages.AssistantMessage() | messages.UserMessage() if not isinstance(message.content, str):
            return "\n".join(filter(None, map(_block, message.content))) or None
        case messages.ApiRetryMessage():
            return f"· {line(retry_told(message))}"
        case messages.SystemMessage() if message.is_init:
            return f"· session {line(message.session_id or '?')}, model {line(message.model or '?')}"
        case messages.OutputLine():
            return clean(message.text)
        case messages.ConnectionDenied():
            return f"· {line(denied_told(message))}"
        case OversizedLine():
            return f"· a line of {message.size} bytes was left out"
        case messages.ErrorMessage():
            tail = f"\n{clean(message.stderr.rstrip())}" if message.stderr.strip() else ""
            return f"✗ {clean(message.message)}{tail}\n  {clean(message.next_step)}"
        case _:
            return None


def denied_told(message: messages.ConnectionDenied) -> str:
    """What the gateway has refused, and the flag that would allow it."""
    if not message.port:
        return f"asked for {message.host}: {message.reason}"
    if message.verdict == "failed":
        return f"{message.host}:{message.port} is not reached: {message.reason}"
    told = f"asked for {message.host}:{message.port}: denied"
    host = host_name(message.host)
    if host is None or "is not in allow_hosts" not in message.reason:  # no word of the box's is offered to be typed
        return f"{told}: {message.reason}"
    usual = "" if message.port in (80, 443) else f":{message.port}"
    return f"{told}; --allow-host={f'[{host}]' if ':' in host else host}{usual} allows it"


def summary(tally: Tally, seconds: float) -> str:
    """The line at the end of a run: how it went, and what it took."""
    failed = tally.error is not None
    head = f"{'failed' if failed else 'succeeded'} after {duration(seconds)}"
    return f"{'✗' if failed else '✓'} {', '.join((head, *taken(tally.turns, tally.tokens, tally.cost_usd)))}"


def job_line(result: JobResult) -> str:
    """How one job of a batch went."""
    head = f"{'✓' if result.succeeded else '✗'} {clean(result.id)} ({job_facts(result)})"
    head += "" if result.branch is None else f" → {clean(result.branch)}"
    return head if result.succeeded else f"{head}: {line(result.message or '')}"


def job_facts(result: JobResult) -> str:
    """What one job of a batch took."""
    return ", ".join((duration(result.duration), *taken(result.turns, result.tokens, result.cost_usd)))


def change_lines(changes: Iterable[Change], most: int) -> Iterator[tuple[str, str]]:
    """The lines of changes with their marks, the first *most* of them."""
    rows = [(mark, clean(text)) for change in changes for mark, text in change.lines]
    yield from rows[:most]
    if len(rows) > most:
        yield " ", f"… {len(rows) - most} more lines"


def tool_call(name: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """A tool's name, and on one line what it is asked to do."""
    told = tool_title(arguments)
    if not told:
        told = ", ".join(f"{key}={_repr.repr(value)}" for key, value in list(arguments.items())[:16])
    return line(name), line(told.removeprefix(f"{paths.WORKSPACE}/"))


def tool_result(block: messages.ToolResultBlock) -> str:
    """The first line of what a tool gave back, and how many more there are."""
    first, _, rest = block.text.strip().partition("\n")
    if not first:
        parts = block.content if isinstance(block.content, list) else []
        has_more = any(isinstance(part, Mapping) and part.get("type") != "text" for part in parts)  # an image, say
        return "(no text)" if has_more else "(no output)"
    return f"{line(first)} (+{rest.count(chr(10)) + 1} lines)" if rest else line(first)


def _failed(message: messages.UserMessage) -> bool:
    return any(isinstance(block, messages.ToolResultBlock) and block.is_error for block in message.content)


def _block(block: Any) -> str | None:
    match block:
        case messages.TextBlock(text=text):
            return clean(text)
        case messages.ToolUseBlock(name=name, input=arguments):
            changed = change_lines(edits(name, arguments, None), MOST_CHANGED)
            return "\n".join([f"● {' '.join(tool_call(name, arguments))}", *(f"  {m} {text}" for m, text in changed)])
        case messages.ToolResultBlock():
            return f"  {'✗' if block.is_error else '└'} {tool_result(block)}"
        case _:
            return None
