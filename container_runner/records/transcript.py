"""What a transcript tells, as a conversation: prompts, texts, tool calls with their results, and how it ended.

Everything in a transcript was written by the agent or passed through it, so nothing here trusts its shape: a value of
an unexpected type is left out, and never raises.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias

import attrs

from container_runner.config.converter import parse_time
from container_runner.records.edits import Change, edits
from container_runner.records.summary import RunSummary
from container_runner.stream.blocks import as_text, tool_title
from container_runner.stream.decode import fits, load
from container_runner.stream.lines import LineSplitter, OversizedLine
from container_runner.stream.messages import (
    AgentMessage,
    ApiRetryMessage,
    AssistantMessage,
    Message,
    OutputLine,
    ResultMessage,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
    parse_message,
)

CHUNK: Final = 256 * 1024
LINE_LIMIT: Final = 64 * 1024**2
"""The longest line that is read, in bytes."""

DEEPEST: Final = 4
"""How deep tool calls of subagents are nested; what is deeper stands beside them."""


@attrs.frozen(kw_only=True)
class Entry:
    """One line of a transcript."""

    time: dt.datetime | None
    """When we read it of the agent, or wrote it."""

    source: Literal["agent", "runner"]
    """Who said it."""

    message: Message
    """What was said. For "runner" its `raw` is ours."""


@attrs.frozen(kw_only=True)
class _Said:
    time: dt.datetime | None
    """When it was read or written; None if that is not known."""

    text: str


class Prompt(_Said):
    """What the agent was asked."""


class Text(_Said):
    """What the agent said."""


class Thinking(_Said):
    """What it thought."""


class Output(_Said):
    """Lines of the agent's that are no messages."""


class Notice(_Said):
    """Something that a reader should know beside the conversation."""


@attrs.frozen(kw_only=True, eq=False)
class ToolCall:
    """A call of a tool, with what came of it."""

    time: dt.datetime | None
    name: str
    input: dict[str, Any]

    ended: dt.datetime | None = None
    """When its result came; None if none did."""

    result: str | None = None
    """Its text; None if it has not ended."""

    is_error: bool = False
    details: Any = None
    """The result as the tool itself describes it."""

    items: tuple[Item, ...] = ()
    """What a subagent did for it."""

    @property
    def seconds(self) -> float | None:
        """How long it took; None if that is not known."""
        if self.time is None or self.ended is None:
            return None
        return max(0.0, (self.ended - self.time).total_seconds())

    @property
    def title(self) -> str:
        """The one value of its input that says most, or "" if there is none."""
        return tool_title(self.input)

    @property
    def changes(self) -> list[Change]:
        """The lines that it changed in a file, if it is a tool that edits."""
        return edits(self.name, self.input, self.details)


@attrs.frozen(kw_only=True)
class Failure:
    """Why the run failed."""

    time: dt.datetime | None
    kind: str
    message: str
    next_step: str
    stderr: str


@attrs.frozen(kw_only=True)
class Done:
    """The agent's own end of its work."""

    time: dt.datetime | None
    result: ResultMessage


Item: TypeAlias = Prompt | Text | Thinking | ToolCall | Output | Notice | Failure | Done


@attrs.frozen(kw_only=True)
class Conversation:
    """A transcript, read."""

    items: tuple[Item, ...]
    """In their order."""

    tools: tuple[ToolCall, ...]
    """All tool calls, those of subagents too."""

    model: str
    """The model's name, or ""."""

    @property
    def result(self) -> ResultMessage | None:
        """The last result of the agent's."""
        return next((item.result for item in reversed(self.items) if isinstance(item, Done)), None)


@attrs.frozen(kw_only=True)
class Part:
    """One run of a session, or all that is known of it."""

    conversation: Conversation
    summary: RunSummary | None = None
    """The run's summary; None if the conversation is claude's own file."""


def retry_told(retry: ApiRetryMessage) -> str:
    """Why the API gave no answer, and what comes of that."""
    status = f"says {retry.error_status}" if retry.error_status else "does not answer"
    why = f" ({retry.error.replace('_', ' ')})" if retry.error and retry.error != "unknown" else ""
    return f"The API {status}{why}: try {retry.attempt} of {retry.max_retries} in {retry.retry_delay_ms / 1000:.0f} s"


def read_lines(fd: int, limit: int | None = None) -> Iterator[bytes]:
    """The complete lines of a file; what follows its last newline is torn, or not yet written to its end.

    Args:
        limit: how many bytes are read. None: all.
    """
    splitter = LineSplitter(LINE_LIMIT)
    read = 0
    while (limit is None or read < limit) and (chunk := os.read(fd, CHUNK)):
        read += len(chunk)
        for line in splitter.push(chunk):
            yield line.head if isinstance(line, OversizedLine) else line


def parse_record(line: bytes) -> Entry | None:
    """The entry that a line of our transcript holds; None if it holds none."""
    envelope = _load(line)
    said = envelope.get("message")
    if not isinstance(said, dict):
        return None
    source: Literal["agent", "runner"] = "runner" if envelope.get("from") == "runner" else "agent"
    message: Message = parse_message(said)
    if source == "agent" and said.get("type") == OutputLine.type:
        message = OutputLine(as_text(said.get("text")).encode("utf-8", "replace"))
    elif source == "agent" and said.get("type") == OversizedLine.type:
        size = said.get("size")
        head = as_text(said.get("head")).encode("utf-8", "replace")
        message = OversizedLine(size if isinstance(size, int) else 0, head)
    return Entry(time=_time(envelope.get("time")), source=source, message=message)


def parse_session_line(line: bytes) -> Entry | None:
    """The entry that a line of claude's own session file holds; None if it is no part of the conversation."""
    raw = _load(line)
    if raw.get("isMeta") is True or raw.get("isSidechain") is True:
        return None
    time = _time(raw.get("timestamp"))
    if raw.get("type") == "user":
        content = raw["message"].get("content") if isinstance(raw.get("message"), dict) else None
        texts = [content] if isinstance(content, str) else [as_text(block.get("text")) for block in _dicts(content)]
        if any(texts):
            start = {"type": "start", "prompt": "\n".join(filter(None, texts))}
            return Entry(time=time, source="runner", message=parse_message(start))
        raw["tool_use_result"] = raw.get("toolUseResult")
    elif raw.get("type") == "cost-state":
        used = {"total_cost_usd": raw.get("totalCostUSD"), "modelUsage": raw.get("modelUsage")}
        raw = {"type": "result", "subtype": "success", "is_error": False, **used}
    elif raw.get("type") != "assistant":
        return None
    return Entry(time=time, source="agent", message=parse_message(raw))


def converse(entries: Iterable[Entry | None]) -> Conversation:
    """The conversation that entries make. An entry that is None is skipped."""
    reader = _Reader()
    for entry in entries:
        if entry is not None:
            reader.take(entry)
    return Conversation(
        items=tuple(map(_finished, reader.items)),
        tools=tuple(call.finished for call in reader.calls),
        model=reader.model,
    )


class _Call:
    """A tool call whose result has not come yet."""

    def __init__(self, block: ToolUseBlock, time: dt.datetime | None, depth: int) -> None:
        self.depth = depth
        self.items: list[Item | _Call] = []
        self.facts: dict[str, Any] = {"time": time, "name": block.name, "input": block.input}

    @cached_property
    def finished(self) -> ToolCall:
        """The call, with what has come by now."""
        return ToolCall(**self.facts, items=tuple(map(_finished, self.items)))


def _finished(item: Item | _Call) -> Item:
    return item.finished if isinstance(item, _Call) else item


class _Reader:
    def __init__(self) -> None:
        self.items: list[Item | _Call] = []
        self.calls: list[_Call] = []
        self.model = ""
        self._by_id: dict[str, _Call] = {}

    def take(self, entry: Entry) -> None:
        message, time = entry.message, entry.time
        if entry.source == "runner":
            self._take_ours(message, time)
            return
        match message:
            case AssistantMessage():
                self.model = message.model or self.model
                parent = self._parent(message.parent_tool_use_id)
                for block in message.content:
                    self._take_block(block, time, parent)
            case UserMessage():
                for block in message.content:
                    if isinstance(block, ToolResultBlock):
                        self._end(block, message.tool_use_result, time)
            case SystemMessage():
                if message.is_init:
                    self.model = message.model or self.model
                elif isinstance(message, ApiRetryMessage):
                    self._add(Notice(time=time, text=retry_told(message)))
                elif message.subtype == "compact_boundary":
                    self._add(Notice(time=time, text="The conversation was compacted."))
            case ResultMessage():
                self._add(Done(time=time, result=message))
            case OutputLine():
                last = self.items[-1] if self.items else None
                if isinstance(last, Output) and len(last.text) < CHUNK:
                    self.items[-1] = attrs.evolve(last, text=f"{last.text}\n{message.text}")
                else:
                    self._add(Output(time=time, text=message.text))
            case OversizedLine():
                self._add(Notice(time=time, text=f"A line of {message.size} bytes was left out."))
            case _:
                pass

    def _take_ours(self, message: Message, time: dt.datetime | None) -> None:
        raw = message.raw if isinstance(message, AgentMessage) else {}
        match raw.get("type"):
            case "start" | "prompt":
                if raw["type"] == "prompt" or raw.get("prompt"):  # a live session begins without one
                    self._add(Prompt(time=time, text=as_text(raw.get("prompt"))))
            case "restart":
                self._add(Notice(time=time, text=f"The start was tried again. {as_text(raw.get('message'))}"))
            case "error":
                facts = {name: as_text(raw.get(name)) for name in ("kind", "message", "next_step", "stderr")}
                self._add(Failure(time=time, **facts))
            case _:
                pass

    def _take_block(self, block: Any, time: dt.datetime | None, parent: _Call | None) -> None:
        match block:
            case TextBlock(text=text) if text.strip():
                self._add(Text(time=time, text=text), parent)
            case ThinkingBlock(thinking=text) if text.strip():
                self._add(Thinking(time=time, text=text), parent)
            case ToolUseBlock():
                call = _Call(block, time, 0 if parent is None else parent.depth + 1)
                self._by_id[block.id] = call
                self.calls.append(call)
                self._add(call, parent)
            case _:
                pass

    def _parent(self, tool_use_id: str | None) -> _Call | None:
        call = None if tool_use_id is None else self._by_id.get(tool_use_id)
        return call if call is not None and call.depth < DEEPEST else None

    def _end(self, block: ToolResultBlock, details: Any, time: dt.datetime | None) -> None:
        call = self._by_id.get(block.tool_use_id)
        if call is not None and "result" not in call.facts:  # one that comes again is nobody's
            others = sum(1 for item in _dicts(block.content) if item.get("type") != "text")
            result = block.text + (f"\n[{others} more, not text]" if others else "")
            call.facts |= {"ended": time, "is_error": block.is_error, "details": details, "result": result}

    def _add(self, item: Item | _Call, parent: _Call | None = None) -> None:
        (self.items if parent is None else parent.items).append(item)


def _load(line: bytes) -> dict[str, Any]:
    """A line as an object; {} if it is none, or is over the budget: an agent may have written it."""
    raw = load(line) if fits(line) else None
    return raw if isinstance(raw, dict) else {}


def _time(value: Any) -> dt.datetime | None:
    try:
        return parse_time(value)
    except (TypeError, ValueError):
        return None


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
