"""`make bench`: us against the bare command line, and against what one would pick instead, side by side in one run."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import attrs

from tests.benchmarks import work
from tests.benchmarks.measure import Row, table
from tests.integration.engines import Engines
from tests.integration.images import Unavailable


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", action="append", choices=["docker", "podman"])
    parser.add_argument("--short", action="store_true", help="once and small, to see that it works")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    runs, lines, many = (1, 2_000, 4) if arguments.short else (5, 200_000, 100)
    strangers = (5,) if arguments.short else (100, 500)
    folder = work.new_folder()
    engines = Engines(work.new_folder())
    rows: list[Row] = []
    try:
        for name in arguments.engine or ["docker", "podman"]:
            place = folder / name
            place.mkdir()
            try:
                bench = work.Bench(engines.get(name), place, runs, lines)
            except Unavailable as reason:
                print(f"{name} is left out: {reason}", file=sys.stderr)
                continue
            bench.prepare()
            if not rows:
                for part in (work.parse_rows, work.memory_rows, work.startup_rows):
                    rows += show(part(bench))
            for measure in (work.stream_rows, work.start_rows):
                rows += show(measure(bench))
            rows += show(work.many_rows(attrs.evolve(bench, runs=min(runs, 4)), many))
            rows += show(work.growth_rows(bench, strangers))
    finally:
        left = engines.stop()
        shutil.rmtree(folder)
    print(f"\n{table(rows)}")
    if arguments.json:
        arguments.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1))
    return 1 if left else 0


def show(rows: list[Row]) -> list[Row]:
    for row in rows:
        print(f"{row.what}, {row.engine}: {row.ours} / {row.theirs} = {row.ratio:.2f} {row.verdict}", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
