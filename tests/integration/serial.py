"""A pytest plugin for the whole machine: it tells on a serial port how each test went, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.fixtures import engine_of

PORT = Path("/dev/ttyS1")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Tell of the test itself, and of what is before and after it if that is worth it."""
    if str(report.outcome) != "rerun" and (report.when == "call" or not report.passed):
        said = {
            "engine": engine_of(report.nodeid),
            "test": report.nodeid.partition("[")[0],
            "outcome": report.outcome,
            "told": report.longreprtext[-5000:],
            "seconds": round(report.duration, 1),
        }
        with PORT.open("w") as port:
            print(json.dumps(said), file=port)
