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

    figures: tuple[float, float]
    """The medians of ours and theirs: seconds, unless *what* says otherwise."""

    target: float | None = None
    """The ratio that is wanted at most, or None where there is no promise."""

    @classmethod
    def of(
        cls,
        what: str,
        engine: str,
        ours: str,
        mine: Sequence[float],
        theirs: str,
        other: Sequence[float],
        target: float | None = None,
    ) -> Row:
        """The row of two lists of figures, paired by their turn."""
        return cls(
            what=what,
            engine=engine,
            ours=ours,
            theirs=theirs,
            ratios=tuple(a / b for a, b in zip(mine, other, strict=True)),
            figures=(statistics.median(mine), statistics.median(other)),
            target=target,
        )

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


@attrs.frozen(kw_only=True)
class Point:
    """What an amount of work cost."""

    what: str
    engine: str
    amount: float
    unit: str
    """What *amount* counts."""

    seconds: float
    megabytes: float | None = None
    """The most memory that our process had; None where that says nothing."""

    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return attrs.asdict(self)


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
        Row.of(what, engine, mine, seconds[mine], other, seconds[other], targets.get(other))
        for mine in ours
        for other in contenders
        if other not in ours
    ]


def table(rows: Sequence[Row]) -> str:
    """Comparisons as a Markdown table."""
    lines = [
        "| what | engine | ours | against | ratio | spread | medians | wanted | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        wanted = "" if row.target is None else f"≤ {row.target:.2f}"
        lines.append(
            f"| {row.what} | {row.engine} | {row.ours} | {row.theirs} | {row.ratio:.2f} "
            f"| {min(row.ratios):.2f}-{max(row.ratios):.2f} | {row.figures[0]:.3f} / {row.figures[1]:.3f} "
            f"| {wanted} | {row.verdict} |"
        )
    return "\n".join(lines)


def growth_table(points: Sequence[Point]) -> str:
    """Amounts and their cost as a Markdown table."""
    lines = ["| what | engine | amount | seconds | ms for each | peak MB | |", "|---|---|---|---|---|---|---|"]
    for point in points:
        each = "" if point.unit == "strangers" else f"{point.seconds / point.amount * 1000:.3g}"
        memory = "" if point.megabytes is None else f"{point.megabytes:.1f}"
        lines.append(
            f"| {point.what} | {point.engine} | {point.amount:,g} {point.unit} | {point.seconds:.3f} | {each} "
            f"| {memory} | {point.note} |"
        )
    return "\n".join(lines)
