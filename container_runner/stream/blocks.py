"""What messages are made of: the blocks of their content, and counts."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from math import isfinite
from typing import Annotated, Any, TypeAlias, get_args, get_origin

import msgspec
from msgspec import UNSET, Meta, Struct

Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Number: TypeAlias = Annotated[float, Meta(ge=0, lt=2**63)]

short = reprlib.Repr()
short.maxstring = 60
short.maxother = 120
short.maxlevel = 3


class Readable(Struct, frozen=True):
    """What prints as one short line: the first three fields that are not their default, cut short."""

    def _shown(self) -> str:
        told = [f"{name}={short.repr(value)}" for name, value in islice(_told(self), 4)]
        return ", ".join([*told[:3], "…"] if told[3:] else told)

    def __repr__(self) -> str:
        shown = self._shown()
        return f"{type(self).__name__}({shown if len(shown) <= 500 else f'{shown[:500]}…'})"


def _told(struct: Struct) -> Iterator[tuple[str, Any]]:
    for info in _fields(type(struct)):
        value = getattr(struct, info.name)
        if isinstance(value, ApiMessage):
            yield from (("message_id" if name == "id" else name, inner) for name, inner in _told(value))
        elif value and value != info.default and not info.name.endswith(("uuid", "uuids", "session_id", "original")):
            yield info.name, value


class TextBlock(Readable, frozen=True, tag="text", gc=False):
    """What the agent wrote."""

    text: str = ""


class ThinkingBlock(Readable, frozen=True, tag="thinking", gc=False):
    """What the agent thought."""

    thinking: str = ""
    signature: str = ""


class RedactedThinkingBlock(ThinkingBlock, frozen=True, tag="redacted_thinking", gc=False):
    """What it thought and nobody may read: both are ""."""


def tool_title(arguments: Mapping[str, Any]) -> str:
    """The one value of a tool's input that tells a person most, or "" if there is none."""
    found = (arguments.get(key) for key in _TELLING)
    return next((value for value in found if isinstance(value, str) and value), "")


_TELLING = (
    *("command", "file_path", "notebook_path", "pattern", "url", "query", "description", "path", "prompt"),
    "title",  # of agents that tell only what they call it
)


class ToolUseBlock(Readable, frozen=True, tag="tool_use"):
    """A call of a tool."""

    id: str = ""
    """What the tool's result refers to."""

    name: str = ""
    input: dict[str, Any] = {}


class ServerToolUseBlock(ToolUseBlock, frozen=True, tag="server_tool_use"):
    """A call of a tool that runs at the API."""


class McpToolUseBlock(ToolUseBlock, frozen=True, tag="mcp_tool_use"):
    """A call of an MCP server's tool that runs at the API."""


class ToolResultBlock(Readable, frozen=True, tag="tool_result"):
    """What a tool gave back."""

    tool_use_id: str = ""
    content: Any = None
    """A str, or a list of the API's content blocks, as it was on the line."""

    is_error: bool = False

    @property
    def text(self) -> str:
        """The text of the content, joined."""
        if isinstance(self.content, str):
            return self.content
        parts = self.content if isinstance(self.content, list) else []
        texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text")
        return "".join(text for text in texts if isinstance(text, str))


class ServerToolResultBlock(ToolResultBlock, frozen=True, tag="advisor_tool_result"):
    """What a tool at the API gave back, whichever `…_tool_result` it is: its `content` says which."""


class UnknownBlock(Readable, frozen=True):
    """A block of a type that we do not know."""

    type: str
    """Its type as it says, or ""."""

    raw: Any
    """The block, kept whole."""


KnownBlock: TypeAlias = (
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ServerToolUseBlock
    | McpToolUseBlock
    | ToolResultBlock
    | ServerToolResultBlock
)
ContentBlock: TypeAlias = KnownBlock | UnknownBlock


class Usage(Readable, frozen=True, kw_only=True, gc=False):
    """Tokens that were used, as attributes and by key: `usage["input_tokens"]`. Every count is 0 or more."""

    input_tokens: Count = 0
    """Tokens of input that no cache had a part in."""

    output_tokens: Count = 0
    cache_creation_input_tokens: Count = 0
    cache_read_input_tokens: Count = 0

    @property
    def total(self) -> int:
        """All four together."""
        return sum(msgspec.structs.astuple(self))

    def keys(self) -> tuple[str, ...]:
        """The names of the counts."""
        return self.__struct_fields__

    def get(self, name: str, default: Any = None) -> Any:
        """The count of that name, or *default* if there is none."""
        return getattr(self, name) if name in self.keys() else default

    def __getitem__(self, name: str) -> int:
        if name not in self.keys():
            raise KeyError(name)
        count: int = getattr(self, name)
        return count

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


class ApiMessage(Readable, frozen=True, kw_only=True, omit_defaults=True):
    """A message of the API, as it stands in the lines of answers and prompts."""

    content: str | list[KnownBlock] = []
    model: str = ""
    id: str = ""
    stop_reason: str | None = None
    usage: Usage | None = None


_BLOCKS: dict[object, Any] = {kind.__struct_config__.tag: kind for kind in get_args(KnownBlock)}
_fields = cache(msgspec.structs.fields)


def read(kind: Any, value: Any) -> Any:
    """*value* as *kind*, or as much of it as can be read; UNSET if nothing can. Never raises."""
    try:
        return msgspec.convert(value, kind)
    except (ValueError, RecursionError, OverflowError):
        pass
    for part in (kind, *get_args(kind)):
        if isinstance(value, list) and get_origin(part) is list:
            (item,) = get_args(part)
            found = map(_read_block, value) if item == KnownBlock else (read(item, one) for one in value)
            return [one for one in found if one is not UNSET]
        if isinstance(value, dict) and isinstance(part, type) and issubclass(part, Struct):
            given = {
                info.name: read(info.type, value[info.encode_name])
                for info in _fields(part)
                if info.encode_name in value
            }
            return part(**{name: one for name, one in given.items() if one is not UNSET})
        if part == Count and isinstance(value, float) and isfinite(value):
            return read(part, int(value))
    return UNSET


def as_text(value: object) -> str:
    """*value* if it is text, and else ""."""
    return value if isinstance(value, str) else ""


def _read_block(raw: Any) -> ContentBlock:
    kind = as_text(raw.get("type")) if isinstance(raw, dict) else ""
    known = _BLOCKS.get(kind, ServerToolResultBlock if kind.endswith("tool_result") else None)
    block: ContentBlock = UnknownBlock(kind, raw) if known is None else read(known, raw)
    return block


class DeferredToolUse(Readable, frozen=True):
    """A tool call that a hook has put off."""

    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}


class RateLimitInfo(Readable, frozen=True, rename="camel", omit_defaults=True):
    """How much of its rate limit an account has used."""

    status: str = ""
    """One of "allowed", "allowed_warning" and "rejected"."""

    resets_at: Number | None = None
    """When the limit starts anew, in seconds since 1970; None if the line does not say."""

    rate_limit_type: str | None = None
    """Which limit: "five_hour", "seven_day", ..."""

    utilization: Number | None = None
    """The part of it that is used, from 0 to 1."""

    overage_status: str | None = None
    overage_resets_at: Number | None = None
    overage_disabled_reason: str | None = None
