"""What there is to know of a run without reading its transcript."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import attrs

from container_runner.stream.messages import Usage

Outcome = Literal["success", "failed", "stopped", "running", "interrupted"]
"""How a run ended: "stopped" by its consumer, "interrupted" with the process that ran it; or that it has not ended."""


@attrs.frozen(kw_only=True)
class RunSummary:
    """What there is to know of a run without reading its transcript. What is not known is None."""

    run_id: str
    agent: str
    outcome: Outcome
    started: dt.datetime

    ended: dt.datetime | None = None
    duration: float | None = None
    """Seconds from the request to the end, the container's removal included."""

    kind: str | None = None
    """What went wrong, as `ErrorMessage.kind`; None if nothing did."""

    message: str | None = None
    """The same as a sentence."""

    exit_code: int | None = None
    """The agent's exit code."""

    turns: int | None = None
    tokens: Usage | None = None
    cost_usd: float | None = None
    """US dollars, by the agent's own reckoning."""

    session_id: str | None = None
    """The session to resume."""

    model: str | None = None
    prompt: str | None = None
    """The first 200 characters of the prompt."""

    workspace: str | None = None
    """The folder on the host."""

    image: str | None = None
    engine: str | None = None
    """The engine's program."""

    container: str | None = None
    """The container's name."""

    complete: bool = True
    """Whether the transcript holds every message."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = attrs.asdict(self)
        values["started"] = shown_time(self.started)
        values["ended"] = None if self.ended is None else shown_time(self.ended)
        if self.tokens is not None:
            values["tokens"]["total"] = self.tokens.total
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The summary that `to_dict` wrote.

        Raises:
            ValueError: it did not write this.
        """
        known = {name: values[name] for name in attrs.fields_dict(cls) if name in values}
        try:
            known["started"] = parse_time(known["started"])
            if known.get("ended") is not None:
                known["ended"] = parse_time(known["ended"])
            if known.get("tokens") is not None:
                counts = attrs.fields_dict(Usage)
                known["tokens"] = Usage(**{name: int(n) for name, n in known["tokens"].items() if name in counts})
            self = cls(**known)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(str(error)) from None
        _check(self)
        return self


def parse_time(text: str) -> dt.datetime:
    """A moment as JSON has it. One that does not say its zone is in UTC.

    Raises:
        ValueError: it is none.
        TypeError: it is no text.
    """
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _check(summary: RunSummary) -> None:
    """Raise ValueError if a value of a summary that was read is of another type than ours."""
    for name, kind in (
        *dict.fromkeys(("run_id", "agent"), str).items(),
        *dict.fromkeys(("kind", "message", "session_id", "model", "prompt", "workspace", "image"), str | None).items(),
        *dict.fromkeys(("duration", "exit_code", "turns", "cost_usd"), float | int | None).items(),
    ):
        if not isinstance(getattr(summary, name), kind):
            msg = f"{name} is not what it should be"
            raise ValueError(msg)  # noqa: TRY004  to the caller it is a file that can not be read
    if summary.outcome not in get_args(Outcome):
        msg = "no such outcome"
        raise ValueError(msg)


def shortened(text: str) -> str:
    """The first 200 characters, as a summary has them."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= 200 else f"{text[:199]}…"


def shown_time(moment: dt.datetime) -> str:
    """A moment in UTC, as JSON has it."""
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
