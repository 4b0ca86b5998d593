"""Messages as text for people. What an agent writes is hostile: it must not reach the terminal's controls."""

from __future__ import annotations

import re
from typing import Any

from container_runner.lines import OversizedLine
from container_runner.messages import (
    AssistantMessage,
    ErrorMessage,
    Message,
    OutputLine,
    ResultMessage,
    SystemMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

WIDTH = 160
"""Characters of a tool call or its result that are shown."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """*text* without characters that could control a terminal or reorder what it shows."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def render(message: Message) -> str | None:
    """A message as one or more lines, or None for one that tells a person nothing."""
    match message:
        case AssistantMessage():
            return "\n".join(filter(None, map(_block, message.content))) or None
        case UserMessage() if not isinstance(message.content, str):
            return "\n".join(filter(None, map(_block, message.content))) or None
        case SystemMessage() if message.is_init:
            return f"· session {clean(message.session_id or '?')}, model {clean(message.model or '?')}"
        case OutputLine():
            return clean(message.text)
        case OversizedLine():
            return f"· a line of {message.size} bytes was left out"
        case ErrorMessage():
            tail = f"\n{clean(message.stderr.rstrip())}" if message.stderr.strip() else ""
            return f"✗ {clean(message.message)}{tail}\n  {message.next_step}"
        case _:
            return None


def summary(result: ResultMessage) -> str:
    """The line at the end of a run."""
    parts = ["failed" if result.is_error else "done", f"{result.num_turns} turns"]
    if result.usage.total:
        parts.append(f"{result.usage.total} tokens")
    if result.total_cost_usd:
        parts.append(f"${result.total_cost_usd:.4f}")
    if result.session_id:
        parts.append(f"resume with --resume={clean(result.session_id)}")
    return f"✓ {', '.join(parts)}" if not result.is_error else f"✗ {', '.join(parts)}"


def _block(block: Any) -> str | None:
    match block:
        case TextBlock(text=text):
            return clean(text)
        case ToolUseBlock(name=name, input=arguments):
            shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            return f"● {clean(name)} {_short(shown)}"
        case ToolResultBlock():
            first, _, rest = block.text.strip().partition("\n")
            more = f" (+{rest.count(chr(10)) + 1} lines)" if rest else ""
            return f"  {'✗' if block.is_error else '⎿'} {_short(first)}{more}"
        case _:
            return None


def _short(text: str) -> str:
    text = clean(" ".join(text.split()))
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"
