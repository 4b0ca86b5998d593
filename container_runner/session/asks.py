"""What a live agent asks of us, and what can be said to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from container_runner.errors import ConfigError


@attrs.frozen
class Image:
    """A picture in a prompt."""

    data: bytes = attrs.field(repr=lambda data: f"{len(data)} bytes")
    media_type: str = "image/png"
    """What `data` is: "image/png", "image/jpeg", "image/gif" or "image/webp"."""


Content: TypeAlias = str | Sequence[str | Image | Mapping[str, Any]]
"""A prompt: a text, or texts, pictures, and blocks in the protocol's own form."""


@attrs.frozen(kw_only=True)
class Ask:
    """Something that the agent wants from us, and waits for; the base of all of them."""

    id: str
    """By which the codec knows it. Two that are open have two ids."""

    raw: Mapping[str, Any] = attrs.field(factory=dict, repr=False, eq=False)
    """The request as the agent made it."""


@attrs.frozen(kw_only=True)
class PermissionRequest(Ask):
    """May it use this tool? Answered by `Allow` or `Deny`."""

    tool_name: str
    input: Mapping[str, Any] = attrs.field(factory=dict)
    """The tool's input. What `Allow` says can replace it, where the agent takes that."""

    tool_use_id: str | None = None
    """The id of the `ToolUseBlock`, if it says."""

    title: str = ""
    """What it wants, in the agent's words; "" if it has none."""

    reason: str = ""
    """Why it has to ask, in the agent's words; "" if it does not say."""

    can_always: bool = False
    """Whether `Allow(always=True)` makes it stop asking for such calls."""


@attrs.frozen(kw_only=True)
class QuestionPart:
    """One thing that a `Question` wants to know."""

    name: str
    """By which `Reply.answers` names it."""

    text: str
    options: tuple[str, ...] = ()
    """What may be answered; empty if any text may."""

    multiple: bool = False
    """Whether several options may be chosen; the answer is then their names with ", " between them."""


@attrs.frozen(kw_only=True)
class Question(Ask):
    """What should it do? Answered by `Reply`, or by `Deny` for no answer."""

    parts: tuple[QuestionPart, ...]


@attrs.frozen(kw_only=True)
class ToolCall(Ask):
    """It calls a tool of the caller's. Answered by `ToolAnswer`."""

    name: str
    input: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Allow:
    """Yes.

    Args:
        input: what the tool gets instead of what the agent wanted to give it. None: that.
        always: do not ask again for such calls in this session, as far as the agent can be told.
    """

    input: Mapping[str, Any] | None = None
    always: bool = False


@attrs.frozen(kw_only=True)
class Deny:
    """No.

    Args:
        message: why; the model reads it.
        interrupt: end the turn as well.
    """

    message: str = "The user does not allow this."
    interrupt: bool = False


@attrs.frozen(kw_only=True)
class Reply:
    """The answers to a `Question`, by the names of its parts."""

    answers: Mapping[str, str]


@attrs.frozen(kw_only=True)
class ToolAnswer:
    """What a tool of the caller's gives back."""

    content: tuple[str | Image, ...]
    is_error: bool = False


@attrs.frozen(kw_only=True)
class HookAnswer:
    """What a hook of the caller's says, in the protocol's own form."""

    output: Mapping[str, Any]


Decision: TypeAlias = Allow | Deny | Reply | ToolAnswer | HookAnswer
"""What an `Ask` is answered with."""


def fits(ask: Ask, decision: object) -> bool:
    """Whether a decision answers an ask of this kind."""
    match ask:
        case PermissionRequest():
            return isinstance(decision, Allow | Deny)
        case Question():
            return isinstance(decision, Reply | Deny)
        case ToolCall():
            return isinstance(decision, ToolAnswer)
        case _:
            return False


def content_blocks(content: Content) -> list[str | Image | Mapping[str, Any]]:
    """A prompt as a list of its parts.

    Raises:
        ConfigError: it is none, is empty, or has something in it that is no part of a prompt.
    """
    parts: list[str | Image | Mapping[str, Any]] = [content] if isinstance(content, str) else list(content)
    if not parts:
        raise ConfigError("content", content, "a text, or a list of texts, Images and blocks")
    for index, part in enumerate(parts):
        if not isinstance(part, str | Image | Mapping):
            raise ConfigError(f"content[{index}]", part, "a text, an Image, or a block as a mapping")
        if isinstance(part, str) and any("\ud800" <= character <= "\udfff" for character in part):
            raise ConfigError(f"content[{index}]", part, "text that UTF-8 can hold")
    return parts
