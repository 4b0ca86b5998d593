"""What a run amounts to so far, added up from its messages."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import attrs
import msgspec

from container_runner.errors import ConfigError
from container_runner.options import ExecuteOptions
from container_runner.stream.blocks import Usage
from container_runner.stream.messages import (
    AgentMessage,
    AssistantMessage,
    ConnectionDenied,
    ErrorMessage,
    Message,
    OutputLine,
    ResultMessage,
    SystemMessage,
)

OUTPUT_TAIL: Final = 64 * 1024
"""How many bytes are kept of what an agent says that gives no result message: its newest lines."""

MOST_DENIED: Final = 100
"""How many refusals of the gateway are kept."""

_OPEN_REQUESTS: Final = 64
"""The answers whose usage may still grow, because subagents answer in between."""

_RESUME: attrs.Attribute[Any] = attrs.fields(ExecuteOptions).resume


def with_turns(before: ResultMessage | None, last: ResultMessage) -> ResultMessage:
    """The last result of a live session, with the turns and the tokens of all. Its cost is of all already."""
    if before is None:
        return last
    told = [usage for usage in (before.usage, last.usage) if usage is not None]
    usage = Usage(**{name: sum(each[name] for each in told) for name in Usage()}) if told else None
    counts = [turns for turns in (before.num_turns, last.num_turns) if turns is not None]
    return msgspec.structs.replace(last, num_turns=sum(counts) if counts else None, usage=usage)


class Tally:
    """Turns, tokens, cost and session of one run.

    Its memory is bounded, however much the agent says.
    """

    def __init__(self, *, in_turns: bool = False) -> None:
        """Args:
        in_turns: whether each result is of one turn, as in a live session, and not of all so far.
        """
        self._in_turns = in_turns
        self.model = ""
        """The model's name, as the agent gives it."""
        self.result: ResultMessage | None = None
        """The last result; its numbers are cumulative, so they hold for the whole run."""
        self.error: ErrorMessage | None = None
        """Why the run failed; None while it has not."""
        self.denied: dict[str, None] = {}
        """What the gateway has refused, as "host:port" or a path of its own, each once."""
        self._session_id = ""
        self._turns = 0
        self._settled = 0
        self._open: dict[str, int] = {}
        self._text = ""
        self._lines: deque[bytes] = deque()
        self._size = 0

    def add(self, message: Message) -> None:
        """Take one more message into account."""
        if isinstance(message, AgentMessage) and message.session_id:
            self._session_id = message.session_id
        match message:
            case AssistantMessage():
                self._add_answer(message)
            case ResultMessage():
                self.result = with_turns(self.result, message) if self._in_turns else message
            case ErrorMessage():
                self.error = message
            case SystemMessage() if message.is_init:
                self.model = message.model
            case ConnectionDenied(verdict="denied") if len(self.denied) < MOST_DENIED:
                self.denied[f"{message.host}:{message.port}" if message.port else message.host] = None
            case OutputLine():
                self._add_line(message.data)
            case _:
                pass

    @property
    def turns(self) -> int | None:
        """The result's own count, or before it how often the model has answered the agent (not its subagents).

        None if neither is told.
        """
        said = self.result.num_turns if self.result else None
        return said or self._turns or said

    @property
    def tokens(self) -> int | None:
        """All tokens, those read from a cache too. Before the result: of the answers so far. None: untold."""
        usage = self.result.usage if self.result else None
        said = None if usage is None else usage.total
        return said or self._settled + sum(self._open.values()) or said

    @property
    def cost_usd(self) -> float | None:
        """US dollars, by the agent's own reckoning; None if it has not said."""
        return self.result.total_cost_usd if self.result else None

    @property
    def session_id(self) -> str | None:
        """The session to resume; None if the agent named none, or one that can not be resumed."""
        assert _RESUME.validator is not None  # noqa: S101  an id that the agent made up may be a path
        try:
            _RESUME.validator(self, _RESUME, self._session_id)
        except ConfigError:
            return None
        return self._session_id

    @property
    def text(self) -> str:
        """The result's text; of an agent that gives none its last words, or else the end of its output."""
        said = self.result.result if self.result else ""
        return said or self._text or b"\n".join(self._lines).decode(errors="replace")

    def _add_answer(self, message: AssistantMessage) -> None:
        self._text = message.text or self._text
        key, used = message.message_id, 0 if message.usage is None else message.usage.total
        if not key:  # nothing tells which lines are of one answer
            self._turns += message.original is None  # claude's dialect has a line for each
            self._settled += used
            return
        if key not in self._open:
            self._turns += message.parent_tool_use_id is None
            if len(self._open) >= _OPEN_REQUESTS:
                self._settled += self._open.pop(next(iter(self._open)))
        self._open[key] = max(used, self._open.get(key, 0))  # the lines of one answer repeat its usage, or raise it

    def _add_line(self, line: bytes) -> None:
        self._lines.append(line[-OUTPUT_TAIL:])
        self._size += len(self._lines[-1]) + 1
        while self._size > OUTPUT_TAIL and len(self._lines) > 1:
            self._size -= len(self._lines.popleft()) + 1
