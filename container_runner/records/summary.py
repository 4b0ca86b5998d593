"""What there is to know of a run without reading its transcript."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import attrs

from container_runner.config.converter import structured, unstructured
from container_runner.stream.messages import Usage

if TYPE_CHECKING:
    from container_runner.workspace.changes import Changes

Outcome = Literal["succeeded", "failed", "stopped", "running", "interrupted"]
"""How a run ended: "stopped" by its consumer, "interrupted" with the process that ran it; or that it has not ended."""


def _usage(value: Usage | Mapping[str, Any] | None) -> Usage | None:
    if value is None or isinstance(value, Usage):
        return value
    counts = structured(Mapping[str, int], value, "tokens")  # type: ignore[type-abstract]  # cattrs takes it
    return Usage(**{name: counts[name] for name in Usage.__struct_fields__ if name in counts})


@attrs.frozen(kw_only=True)
class Work:
    """What came out of a carried workspace. The ids are those of commits in its shadow."""

    base: str
    """The folder as it was."""

    result: str
    """As it came out."""

    head: str | None = None
    """The agent's last commit, if it made one."""

    files: int = 0
    """How many files are not as they were."""

    findings: tuple[tuple[str, str], ...] = ()
    """What was not taken over, or is to be looked at: kinds and paths, the first 30."""

    @classmethod
    def of(cls, changes: Changes) -> Work:
        """What is told of *changes* in a summary."""
        return cls(
            base=changes.base,
            result=changes.result,
            head=changes.head,
            files=len(changes.files),
            findings=tuple((it.kind, it.path.decode("utf-8", "backslashreplace")) for it in changes.findings[:30]),
        )


def _work(value: Work | Mapping[str, Any] | None) -> Work | None:
    return value if value is None or isinstance(value, Work) else structured(Work, value, strangers=True)


@attrs.frozen(kw_only=True)
class RunSummary:
    """What there is to know of a run without reading its transcript. What is not known is None.

    Attributes:
        duration: Seconds from the request to the end, the container's removal included.
        kind: What went wrong, as `ErrorMessage.kind`; None if nothing did.
        message: The same as a sentence.
        exit_code: The agent's exit code.
        cost_usd: US dollars, by the agent's own reckoning.
        session_id: The session to resume.
        prompt: The first 200 characters of the prompt.
        workspace: The folder on the host.
        engine: The engine's program.
        endpoint: The engine's address, if it is not the usual one of this machine.
        container: The container's name.
        complete: Whether the transcript holds every message.
        changes: What came out of a carried workspace.
    """

    run_id: str
    agent: str
    outcome: Outcome
    started: dt.datetime
    ended: dt.datetime | None = None
    duration: float | None = None
    kind: str | None = None
    message: str | None = None
    exit_code: int | None = None
    turns: int | None = None
    tokens: Usage | None = attrs.field(default=None, converter=_usage)
    cost_usd: float | None = None
    session_id: str | None = None
    model: str | None = None
    prompt: str | None = None
    workspace: str | None = None
    image: str | None = None
    engine: str | None = None
    endpoint: str | None = None
    container: str | None = None
    complete: bool = True
    changes: Work | None = attrs.field(default=None, converter=_work)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values: dict[str, Any] = unstructured(attrs.evolve(self, tokens=None))
        if (usage := self.tokens) is not None:
            values["tokens"] = {**usage, "total": usage.total}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The summary that `to_dict` wrote.

        Raises:
            ConfigError: it did not write this.
        """
        return structured(cls, values, strangers=True)


def shortened(text: str) -> str:
    """The first 200 characters, as a summary has them."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= 200 else f"{text[:199]}…"
