"""Fixtures of the fault suite, and the table that it prints at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scene import Scene, Table
from tests.integration.engines import Engines, RealEngine
from tests.integration.fixtures import on, skipped_if_unavailable

TABLE = Table()


@pytest.fixture(params=on("docker", "podman"))
def engine(request: pytest.FixtureRequest, engines: Engines) -> RealEngine:
    """Docker Engine and rootful Podman in turn; a test that wants others says so."""
    with skipped_if_unavailable():
        return engines.get(request.param)


@pytest.fixture
def scene(engine: RealEngine) -> Iterator[Scene]:
    """A place for one fault on each engine."""
    with Scene.on(engine, TABLE) as scene:
        yield scene


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not TABLE.rows:
        return
    text = TABLE.to_markdown()
    terminalreporter.section("faults")
    terminalreporter.write_line(text)
    if file := config.getoption("--fault-table"):
        Path(file).write_text(f"{text}\n")
