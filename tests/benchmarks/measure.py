"""Interleaved timings, and the table that they make."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs

Timed = Callable[[], float]
"""Does the work once and returns its seconds."""


@attrs.frozen(kw_only=True)
class Row:
    """One comparison."""

    what: str
    engine: str
    ours: str
    """What of ours was measured."""

    theirs: str
    """What it was measured against."""

    ratios: tuple[float, ...]
    """ours / theirs, run by run."""

    seconds: tuple[float, float]
    """The medians of ours and theirs."""

    target: float | None = None
    """The ratio that is wanted at most, or None where there is no promise."""

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if self.ratio <= self.target else "MISSED"

    def to_dict(self) -> dict[str, Any]:
        return attrs.asdict(self) | {"ratio": self.ratio, "verdict": self.verdict}


def timed(work: Callable[[], object]) -> Timed:
    """*work*, timed from its call to its return."""

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return run


def compare(
    what: str, engine: str, contenders: dict[str, Timed], ours: Sequence[str], runs: int, targets: dict[str, float]
) -> list[Row]:
    """Run all contenders in turn, *runs* times after one warm-up, and compare each of *ours* with each other.

    Pairs of the same turn are compared, so a machine that slows down slows both sides of a ratio.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(runs + 1):
        for name, work in contenders.items():
            took = work()
            if turn:
                seconds[name].append(took)
    return [
        Row(
            what=what,
            engine=engine,
            ours=mine,
            theirs=other,
            ratios=tuple(a / b for a, b in zip(seconds[mine], seconds[other], strict=True)),
            seconds=(statistics.median(seconds[mine]), statistics.median(seconds[other])),
            target=targets.get(other),
        )
        for mine in ours
        for other in contenders
        if other not in ours
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| what | engine | ours | against | ratio | spread | seconds | wanted | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        wanted = "" if row.target is None else f"≤ {row.target:.2f}"
        lines.append(
            f"| {row.what} | {row.engine} | {row.ours} | {row.theirs} | {row.ratio:.2f} "
            f"| {min(row.ratios):.2f}-{max(row.ratios):.2f} | {row.seconds[0]:.3f} / {row.seconds[1]:.3f} "
            f"| {wanted} | {row.verdict} |"
        )
    return "\n".join(lines)
