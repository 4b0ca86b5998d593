"""What a run came to."""

from __future__ import annotations

from typing import Any

import attrs

from container_runner.records.records import RunRecord
from container_runner.records.tally import Tally
from container_runner.stream.blocks import Usage
from container_runner.stream.messages import Message
from container_runner.workspace.changes import Changes


@attrs.frozen(kw_only=True)
class RunResult:
    """What a run came to. What is not known is None.

    Attributes:
        text: The agent's last words; of an agent that gives no result message, the end of its output.
        session_id: The session to resume.
        turns: How often the model has answered.
        usage: The tokens that were used.
        cost_usd: US dollars, by the agent's own reckoning.
        structured_output: The answer in the shape that was asked for.
        denied: What the gateway has refused, as "host:port", each once.
        changes: What came out of a carried workspace.
        record: What is kept of the run in the state folder, for `Records`.
        messages: All messages, if they were asked for.
    """

    text: str = attrs.field(repr=lambda text: repr(text if len(text) <= 200 else f"{text[:199]}…"))
    session_id: str | None = None
    turns: int | None = None
    usage: Usage | None = None
    cost_usd: float | None = None
    structured_output: Any = None
    denied: tuple[str, ...] = ()
    changes: Changes | None = None
    record: RunRecord | None = attrs.field(default=None, repr=False)
    messages: tuple[Message, ...] = attrs.field(default=(), repr=False)

    @classmethod
    def of(
        cls, tally: Tally, changes: Changes | None, record: RunRecord | None, messages: tuple[Message, ...]
    ) -> RunResult:
        """What a run that has ended came to."""
        last = tally.result
        return cls(
            text=tally.text,
            session_id=tally.session_id,
            turns=tally.turns,
            usage=None if last is None else last.usage,
            cost_usd=tally.cost_usd,
            structured_output=None if last is None else last.structured_output,
            denied=tuple(tally.denied),
            changes=changes,
            record=record,
            messages=messages,
        )
