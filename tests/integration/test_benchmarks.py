"""The benchmark works; what it measures is for `make bench`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.engine
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["podman"])
def test_the_benchmark_in_its_short_form(engine: str, tmp_path: Path) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "page.md"
    page.write_text("before\n<!-- figures -->\nold\n<!-- end of the figures -->\nafter\n")

    command = [sys.executable, "-m", "tests.benchmarks", "--short", f"--engine={engine}"]
    done = subprocess.run(
        [*command, f"--json={figures}", f"--page={page}"], check=False, capture_output=True, text=True
    )

    if f"{engine} is left out" in done.stderr and os.environ.get("CI") != "true":
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads(figures.read_text())
    rows = measured["comparisons"]
    assert {
        "start-up",
        "stream",
        "cold start, end",
        "carried, 5 MB",
        "pool, first message",
        "session, first message",
        "4 at once",
    } <= {row["what"] for row in rows}
    assert all(row["ratio"] > 0 for row in rows if "processor seconds" not in row["what"])
    assert {"queued runs", "first message, kept"} <= {point["what"] for point in measured["growth"]}
    written = page.read_text()
    assert written.startswith("before\n<!-- figures -->\n")
    assert written.endswith("<!-- end of the figures -->\nafter\n")
    assert "old" not in written.split()
    assert f"| cold start, end | {engine} |" in written
