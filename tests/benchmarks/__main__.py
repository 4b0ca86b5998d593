"""`make bench`: us against the bare command line, and against what one would pick instead, side by side in one run."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.benchmarks import carried, gateway, growth, work
from tests.benchmarks.bench import Bench, new_folder
from tests.benchmarks.measure import Point, Row, growth_table, table
from tests.integration.engines import Engines
from tests.integration.images import Unavailable

_BLOCK = re.compile(r"(?<=<!-- figures -->\n).*(?=<!-- end of the figures -->)", re.DOTALL)


@attrs.define
class Figures:
    """All that was measured so far."""

    json: Path | None
    page: Path | None
    rows: list[Row] = attrs.field(factory=list)
    points: list[Point] = attrs.field(factory=list)

    def add(self, rows: list[Row], points: list[Point] | None = None) -> None:
        """Keep them, and write and show them, for it takes half an hour until they are all there."""
        self.rows += rows
        self.points += points or []
        if self.json:
            self.json.write_text(json.dumps(self.to_dict(), indent=1))
        if self.page:
            self.page.write_text(_BLOCK.sub(lambda _: self.to_markdown(), self.page.read_text()))
        for row in rows:
            print(f"{row.what}, {row.engine}: {row.ours} / {row.theirs} = {row.ratio:.2f} {row.verdict}", flush=True)
        for point in points or []:
            print(f"{point.what}, {point.engine}: {point.amount:,g} {point.unit} in {point.seconds:.3f} s", flush=True)

    def to_markdown(self) -> str:
        return f"{machine()}\n\n{table(self.rows)}\n\n{growth_table(self.points)}\n"

    def to_dict(self) -> dict[str, object]:
        return {
            "machine": machine(),
            "comparisons": [row.to_dict() for row in self.rows],
            "growth": [point.to_dict() for point in self.points],
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", action="append", choices=["docker", "podman"])
    parser.add_argument("--short", action="store_true", help="once and small, to see that it works")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--page", type=Path, help="also put the tables into this page, between its two marks")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the engines are stopped then too
    figures = Figures(arguments.json, arguments.page)
    folder, engines = new_folder(), Engines(new_folder())
    try:
        benches = list(prepare(engines, folder, arguments.engine or ["docker", "podman"], short=arguments.short))
        for bench in benches:
            compare(bench, figures, short=arguments.short)
        for bench in benches:
            grow(bench, figures, short=arguments.short)
    finally:
        left = engines.stop()
        shutil.rmtree(folder)
    print(f"\n{figures.to_markdown()}")
    return 1 if left or not figures.rows else 0


def prepare(engines: Engines, folder: Path, names: list[str], *, short: bool) -> Iterator[Bench]:
    """What to measure with, for each engine that can be had."""
    for name in names:
        try:
            bench = Bench(engines.get(name), folder / name, *((1, 2_000) if short else (5, 200_000)))
        except Unavailable as reason:
            print(f"{name} is left out: {reason}", file=sys.stderr)
        else:
            bench.folder.mkdir()
            bench.prepare()
            yield bench


def compare(bench: Bench, figures: Figures, *, short: bool) -> None:
    """Us against others on one engine, and with the first one what needs none."""
    if not figures.rows:
        figures.add(work.startup_rows(bench))
        figures.add(work.parse_rows(bench))
    figures.add(work.stream_rows(bench))
    figures.add(work.start_rows(bench))
    figures.add(carried.carried_rows(bench, short=short))
    figures.add(gateway.gateway_rows(bench, short=short))
    figures.add(work.many_rows(bench, 4 if short else 100))


def grow(bench: Bench, figures: Figures, *, short: bool) -> None:
    """How the cost grows on one engine, and with the first one where there is none."""
    if not figures.points:
        figures.add(*growth.stream_points(bench))
        figures.add([], growth.line_points(bench))
    figures.add(growth.idle_rows(bench, 2 if short else 50, 1 if short else 60))
    figures.add(*growth.run_points(bench, (1, 4) if short else (10, 100, 1_000)))
    figures.add([], growth.stranger_points(bench, (0, 2) if short else (0, 100, 500)))


def machine() -> str:
    """Where and when this was measured."""
    processor = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    today = dt.datetime.now(dt.UTC).date()
    return f"{today}, {os.cpu_count()} processors ({processor}), Python {platform.python_version()}."


if __name__ == "__main__":
    sys.exit(main())
