"""What an ACP agent says in a session, folded into claude's dialect, of which our messages are made.

ACP tells of a turn in updates. A text comes in pieces, with nothing to say that it is complete: it is when something
else comes. A tool call comes in any number of updates, each with only what has changed, and the first of them may be
of either kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import attrs
import orjson

from container_runner.stream.blocks import as_text
from container_runner.stream.reader import Folded, answered, called, count, gave, part, piece, text, thought, used

MOST_TEXT: Final = 1024**2
"""After so many characters a text becomes a message, though more of it may come."""

MOST_CALLS: Final = 256
"""How many tool calls are kept in mind at a time; the oldest is told as it is then."""

MOST_WEIGHT: Final = 64 * 1024**2
"""How many bytes the lines may have had that are kept in mind for the open tool calls."""

STATES: Final = frozenset(
    (
        *("plan", "available_commands_update", "current_mode_update", "config_option_update", "session_info_update"),
        *("usage_update", "notice", "compaction_update"),
    )
)
"""Updates that are no part of the conversation. Each is a `SystemMessage` of that subtype, if it says anything new."""

_CHUNKS: Final = {"agent_message_chunk": "text", "agent_thought_chunk": "thinking", "user_message_chunk": "user"}
_MODE_SET: Final = "[MODE_UPDATE] "
"""How gemini says, as if the model had, that its mode was set."""

_ENDED: Final = ("completed", "failed")
_OUTPUTS: Final = ("output", "content", "text", "stdout", "formatted_output", "aggregated_output", "error", "message")
"""Where agents put a tool's output in `rawOutput`, the likeliest first."""


@attrs.define(eq=False)
class _ToolCall:
    id: str
    said: dict[str, Any] = attrs.field(factory=dict)
    """All that the updates have said of it so far."""
    weight: int = 0
    is_told: bool = False
    has_ended: bool = False

    @property
    def name(self) -> str:
        """The tool's name; of agents that tell only what kind of tool it is, the kind."""
        meta = part(self.said, "_meta")
        hidden = next((as_text(part(meta, key).get("toolName")) for key in meta if part(meta, key)), "")
        names = (self.said.get("name"), meta.get("toolName"), hidden, self.said.get("kind"))
        return next((name for name in map(as_text, names) if name), "tool")

    @property
    def input(self) -> dict[str, Any]:
        """What the tool gets; of agents that do not tell, what it is called for people."""
        given = self.said.get("rawInput")
        if isinstance(given, dict) and given:
            return given
        if given not in (None, {}):
            return {"input": given}
        title = as_text(self.said.get("title"))
        return {"title": title} if title else {}

    @property
    def output(self) -> str:
        """The text that it gave back."""
        items = self.said.get("content")
        found = [_text_of(item) for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        if any(found):
            return "\n".join(each for each in found if each)
        raw = self.said.get("rawOutput")
        if isinstance(raw, dict):
            outputs = (as_text(raw.get(key)) for key in _OUTPUTS)
            return next((each for each in outputs if each), "") or (orjson.dumps(raw).decode() if raw else "")
        return raw if isinstance(raw, str) else "" if raw is None else orjson.dumps(raw).decode()


class Updates:
    """Folds the updates of one session.

    Args:
        partial: whether each piece of a text is told as well.
        counts_on: whether the agent tells with a turn's end what all its turns so far have used.
    """

    def __init__(self, *, partial: bool = False, counts_on: bool = False) -> None:
        self._partial = partial
        self._counts_on = counts_on
        self._total: Folded = {}
        self._kind = ""
        self._message_id = ""
        self._pieces: list[str] = []
        self._length = 0
        self._calls: dict[str, _ToolCall] = {}
        self._weight = 0
        self._states: dict[str, bytes] = {}
        self._cost: float | None = None
        self._usage: Folded | None = None
        self._denials: list[Folded] = []
        self._denied: list[str] = []
        self.last_text = ""
        """The agent's last whole text in this turn."""
        self.last_piece = ""
        """The piece of text that came last in this turn."""

    def take(self, update: dict[str, Any], size: int) -> list[Folded]:
        """What an update says, in its order; *size* is its line's length in bytes."""
        kind = as_text(update.get("sessionUpdate"))
        if kind in STATES:
            return self._take_state(kind, update)
        if kind in ("tool_call", "tool_call_update") and (name := as_text(update.get("toolCallId"))):
            told = [*self.flush(), *self._end_denied(but=name)]
            return [*told, *self._take_call(update, size, is_new=kind == "tool_call")]
        if kind in _CHUNKS:
            return [*self._end_denied(), *self._take_chunk(_CHUNKS[kind], update)]
        return [*self.flush(), {"type": "session/update", "original": update}]

    def take_state(self, update: dict[str, Any]) -> list[Folded]:
        """The same of what is said again of an old conversation: that is no part of this one."""
        kind = as_text(update.get("sessionUpdate"))
        return self._take_state(kind, update) if kind in STATES else []

    def ask(self, tool_call: dict[str, Any], size: int) -> tuple[list[Folded], str, str, dict[str, Any]]:
        """What a tool call is told as that a permission is asked for, and its id, name and input.

        Some agents tell of it there for the first time.
        """
        call = self._call(tool_call, size, is_new=False)
        told = [*self.flush(), *self._end_denied(but=call.id), *self._tell(call)]
        return told, call.id, call.name, call.input

    def deny(self, tool_use_id: str, name: str, given: Mapping[str, Any]) -> None:
        """Keep in mind that a tool call was not permitted."""
        self._denied.append(tool_use_id)
        self._denials.append({"tool_name": name, "tool_use_id": tool_use_id, "tool_input": dict(given)})

    def flush(self) -> list[Folded]:
        """The text that was being written, as a message."""
        kind, said, self._kind, self._pieces, self._length = self._kind, "".join(self._pieces), "", [], 0
        if not said:
            return []
        if kind == "user":
            return [{"type": "user", "message": {"role": "user", "content": [text(said)]}}]
        if kind == "text":
            self.last_text = said
        return [answered(text(said) if kind == "text" else thought(said), id=self._message_id)]

    def end(self, answer: Mapping[str, Any]) -> tuple[list[Folded], Folded]:
        """What is left to be told when a turn ends, and the numbers of its result. The next turn begins."""
        told = self.flush()
        for call in self._calls.values():
            told += self._tell(call)
        told += self._end_denied()
        usage = self._of_turn(_usage(part(answer, "usage"))) or _quota(answer) or self._usage
        numbers = {
            "usage": usage,
            "total_cost_usd": self._cost,
            "permission_denials": self._denials or None,
            "stop_reason": as_text(answer.get("stopReason")) or None,
        }
        self._calls, self._weight, self._usage, self._denials = {}, 0, None, []
        return told, {name: value for name, value in numbers.items() if value is not None}

    def _of_turn(self, usage: Folded | None) -> Folded | None:
        """What this turn has used; None if nothing is told of it."""
        if usage is None or not self._counts_on:
            return usage
        before, self._total = self._total, usage
        used = {name: max(0, value - before.get(name, 0)) for name, value in usage.items()}
        return used if any(used.values()) else None

    def begin(self) -> None:
        """A turn begins."""
        self.last_text = self.last_piece = ""

    def _take_chunk(self, kind: str, update: dict[str, Any]) -> list[Folded]:
        self._add_usage(_usage(part(update, "_meta", "usage")))
        content = part(update, "content")
        said = as_text(content.get("text"))
        if content.get("type") != "text":
            role = "user" if kind == "user" else "assistant"
            block = content or {"type": "unknown"}
            return [*self.flush(), {"type": role, "message": {"role": role, "content": [block]}, "original": update}]
        if said.startswith(_MODE_SET):
            return [*self.flush(), {"type": "system", "subtype": "notice", "original": update}]
        if not said:
            return []
        told, message_id = [], as_text(update.get("messageId"))
        if (kind, message_id) != (self._kind, self._message_id) or self._length > MOST_TEXT:
            told = self.flush()
        self._kind, self._message_id = kind, message_id
        self._pieces.append(said)
        self._length += len(said)
        if kind == "text":
            self.last_piece = said
        if self._partial and kind != "user":
            told.append(piece(said) if kind == "text" else _thought_piece(said))
        return told

    def _take_call(self, update: dict[str, Any], size: int, *, is_new: bool) -> list[Folded]:
        call = self._call(update, size, is_new=is_new)
        if call.has_ended:  # it was told already
            return []
        told: list[Folded] = []
        status = call.said.get("status")
        if status in _ENDED or status == "in_progress":  # while it is pending its input may still be on its way
            told += self._tell(call)
        if status in _ENDED:
            call.has_ended = True
            result = gave(call.id, call.output, is_error=status == "failed")
            details = call.said.get("rawOutput")
            more = {} if details is None else {"tool_use_result": details}
            told.append({**result, **more, "original": update})
            call.said = {}
        elif self._partial and call.is_told:
            told.append({"type": "tool_progress", "tool_use_id": call.id, "tool_name": call.name, "original": update})
        return [*self._make_room(call), *told]

    def _end_denied(self, *, but: str = "") -> list[Folded]:
        """The results of tool calls that were not permitted, of agents that do not tell of their end, as gemini."""
        told: list[Folded] = []
        for name in [name for name in self._denied if name != but]:
            self._denied.remove(name)
            call = self._calls.get(name)
            if call is not None and not call.has_ended:
                call.has_ended = True
                told.append(gave(name, "It was not permitted.", is_error=True))
        return told

    def _call(self, update: dict[str, Any], size: int, *, is_new: bool) -> _ToolCall:
        name = as_text(update.get("toolCallId"))
        call = self._calls.get(name)
        if call is None or (is_new and call.has_ended):
            call = self._calls[name] = _ToolCall(name)
        if not call.has_ended:
            # A pending one whose input is not known yet says {}, and some say less when they ask than they did before.
            given = {**part(call.said, "rawInput"), **part(update, "rawInput")}
            call.said |= {key: value for key, value in update.items() if value is not None}
            if given:
                call.said["rawInput"] = given
            call.weight += size
            self._weight += size
        return call

    def _tell(self, call: _ToolCall) -> list[Folded]:
        if call.is_told:
            return []
        call.is_told = True
        original = {key: value for key, value in call.said.items() if key not in ("content", "rawOutput")}
        return [{**answered(called(call.id, call.name, call.input)), "original": original}]

    def _make_room(self, newest: _ToolCall) -> list[Folded]:
        told: list[Folded] = []
        while len(self._calls) > 1 and (len(self._calls) > MOST_CALLS or self._weight > MOST_WEIGHT):
            oldest = next(call for call in self._calls.values() if call is not newest)
            told += self._tell(oldest)
            self._weight -= oldest.weight
            del self._calls[oldest.id]
        return told

    def _take_state(self, kind: str, update: dict[str, Any]) -> list[Folded]:
        if kind == "usage_update":
            self._take_cost(part(update, "cost"))
        said = hashlib.blake2b(orjson.dumps(update), digest_size=16).digest()
        if self._states.get(kind) == said:  # qwen says with each prompt which commands it has, in half a megabyte
            return []
        self._states[kind] = said
        return [{"type": "system", "subtype": kind, "original": update}]

    def _take_cost(self, cost: Mapping[str, Any]) -> None:
        """What the session has cost so far. Another currency than ours is left to who reads the update."""
        amount = cost.get("amount")
        if cost.get("currency") == "USD" and isinstance(amount, int | float) and not isinstance(amount, bool):
            self._cost = float(amount)

    def _add_usage(self, usage: Folded | None) -> None:
        if usage is not None:
            known = self._usage or {}
            self._usage = {name: known.get(name, 0) + value for name, value in usage.items()}


def _thought_piece(said: str) -> Folded:
    delta = {"type": "thinking_delta", "thinking": said}
    return {"type": "stream_event", "event": {"type": "content_block_delta", "index": 0, "delta": delta}}


def _text_of(item: Mapping[str, Any]) -> str:
    """The text of one thing that a tool gave back."""
    if item.get("type") == "diff":
        return f"changed {as_text(item.get('path'))}"
    return as_text(part(item, "content").get("text"))


def _usage(said: Mapping[str, Any]) -> Folded | None:
    """Tokens as ACP has them. Whether those of the cache are among the input's, the agents do not agree.

    The total tells: it is the sum of all, so it is too small for those that were counted twice.
    """
    if not said:
        return None
    given, output = count(said.get("inputTokens")), count(said.get("outputTokens"))
    read, written = count(said.get("cachedReadTokens")), count(said.get("cachedWriteTokens"))
    is_outside = count(said.get("totalTokens")) >= given + output + read + written
    return used(given + read + written if is_outside else given, output, read=read, written=written)


def _quota(answer: Mapping[str, Any]) -> Folded | None:
    """Tokens as gemini has them; those of the cache are among the input's, and it does not say how many they are."""
    said = part(answer, "_meta", "quota", "token_count")
    return used(said.get("input_tokens"), said.get("output_tokens")) if said else None
