"""Reads agents that speak a dialect of their own, and says in claude's what they say.

A dialect is one function: an object that the agent wrote goes in, objects as claude would have written them come out.
The messages are made of these, so a caller does not see which agent it was. What the agent itself wrote stays, in
`AgentMessage.original`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any, ClassVar, TypeAlias

from container_runner.stream.blocks import as_text
from container_runner.stream.decode import fits, load
from container_runner.stream.messages import AgentMessage, OutputLine, UnknownMessage, parse_message

Folded: TypeAlias = dict[str, Any]
"""An object as claude would have written it on a line."""


class Reader:
    """Reads the lines of one run, in their order. Each run has its own, so it may keep in mind what came before."""

    types: ClassVar[Container[object]] = frozenset()
    """The types of the agent's lines, by which one is found behind another program's words on the same line."""

    def __init__(self) -> None:
        self.session_id = ""
        """The session, once the agent has named it. Every message has it from then on."""

    def fold(self, raw: dict[str, Any]) -> Iterable[Folded] | None:
        """What *raw* means: nothing, one message or several. None for what is not known, which is kept as it is.

        The first one gets *raw* as its `original`, unless that is among what is said here.

        The agent wrote it: any value may be of any type, or missing. Of what is said here, `parse_message` takes what
        it can read, and never raises.
        """
        raise NotImplementedError

    def fold_end(self) -> Folded | None:
        """The result, at the end of all lines, of an agent that gives none itself; None if there is nothing to tell."""
        return None

    def read(self, line: bytes) -> list[AgentMessage | OutputLine]:
        """The messages on a line. Never raises."""
        raw = load(line) if fits(line) else None
        if not isinstance(raw, dict):
            return [OutputLine(line)] if line.strip() else []
        folded = self.fold(raw)
        if folded is None:
            return [parse_message(raw, UnknownMessage)]
        made: list[AgentMessage | OutputLine] = []
        for each in folded:
            whole = {"session_id": self.session_id, **each} if self.session_id else each
            made.append(parse_message(whole if made else {"original": raw, **whole}))
        return made

    def end(self) -> list[AgentMessage]:
        """The messages that are due when the agent has said all."""
        folded = self.fold_end()
        return [] if folded is None else [parse_message({"session_id": self.session_id, **folded})]


def begun(session_id: str, *, model: object = None, cwd: object = None) -> Folded:
    """The beginning of a run, in which the session is named."""
    said = {"model": model, "cwd": cwd}
    more = {name: value for name, value in said.items() if isinstance(value, str)}
    return {"type": "system", "subtype": "init", "session_id": session_id, **more}


def warned(text: object) -> Folded:
    """Something that the agent warns of."""
    return {"type": "system", "subtype": "warning", "message": as_text(text)}


def retried(attempt: int, most: int, why: str, *, status: int | None = None) -> Folded:
    """The API gave no answer, and is asked again."""
    said = {"attempt": attempt, "max_retries": most, "error": why, "error_status": status}
    return {"type": "system", "subtype": "api_retry", **said}


def answered(*blocks: Folded, id: object = None, model: object = None, usage: Folded | None = None) -> Folded:  # noqa: A002  the message's name
    """A part of the agent's answer. With the *id* of the API's message, a turn is counted. *usage* is its own."""
    said = {"id": id, "model": model, "usage": usage}
    more = {name: value for name, value in said.items() if value}
    return {"type": "assistant", "message": {"role": "assistant", "content": list(blocks), **more}}


def text(said: object) -> Folded:
    """What the agent wrote, as a block."""
    return {"type": "text", "text": as_text(said)}


def thought(said: object) -> Folded:
    """What it thought, as a block."""
    return {"type": "thinking", "thinking": as_text(said)}


def called(id: object, name: object, arguments: object) -> Folded:  # noqa: A002  what it is called in the message
    """A call of a tool, as a block."""
    given = arguments if isinstance(arguments, dict) else {}
    return {"type": "tool_use", "id": as_text(id), "name": as_text(name), "input": given}


def gave(id: object, content: object, *, is_error: bool) -> Folded:  # noqa: A002  as above
    """What a tool gave back."""
    block = {"type": "tool_result", "tool_use_id": as_text(id), "content": as_text(content), "is_error": is_error}
    return {"type": "user", "message": {"role": "user", "content": [block]}}


def piece(said: object) -> Folded:
    """A piece of the text that is being written."""
    delta = {"type": "text_delta", "text": as_text(said)}
    return {"type": "stream_event", "event": {"type": "content_block_delta", "index": 0, "delta": delta}}


def ended(said: str, *, error: str | None = None, status: int | None = None, **more: Any) -> Folded:
    """The result.

    Args:
        said: the agent's last words.
        error: what went wrong, in the agent's words; None if it succeeded.
        status: the HTTP status of the request to the API that failed.
        more: more fields of `ResultMessage`, as claude calls them; None for what the agent does not tell.
    """
    facts = {"api_error_status": status, **more}
    return {
        "type": "result",
        "subtype": "success" if error is None else "error_during_execution",
        "is_error": error is not None,
        "result": said,
        "errors": [] if error is None else [error],
        **{name: value for name, value in facts.items() if value is not None},
    }


def used(whole_input: object, output: object, *, read: object = 0, written: object = 0) -> Folded:
    """The tokens that were used.

    Args:
        whole_input: the tokens of input, with those of the cache among them.
        output: the tokens of output, with those of its thoughts among them.
        read: those of the input that were read from the cache.
        written: those that were written to it.
    """
    from_cache, to_cache = count(read), count(written)
    return {
        "input_tokens": max(0, count(whole_input) - from_cache - to_cache),
        "output_tokens": count(output),
        "cache_read_input_tokens": from_cache,
        "cache_creation_input_tokens": to_cache,
    }


def count(value: object) -> int:
    """*value* if it is a number of something, and else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else 0


def part(raw: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The object that stands below these names; {} if there is none."""
    found: Any = raw
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def parts(raw: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects in the list of this name; [] if there are none."""
    found = raw.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def status_in(said: str, pattern: re.Pattern[str]) -> int | None:
    """The HTTP status that an error's text tells, in the first group of *pattern*; None if it tells none."""
    found = pattern.search(said)
    return int(found[1]) if found else None
