"""What all tests share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.faults.scene import TABLE, Row
from tests.integration.engines import PLACES

pytest_plugins = ["tests.integration.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here because pytest reads options before it comes to the conftest.py of a subfolder.
    parser.addoption(
        "--engine",
        action="append",
        choices=PLACES,
        help="the real engine (or the machine) to test with; may be repeated; without it they are all used",
    )
    parser.addoption("--fault-table", metavar="FILE", help="write the fault suite's table to this file")


def pytest_configure(config: pytest.Config) -> None:
    """Let no example of Hypothesis be too slow: that says more of what else this machine does than of us."""
    if config.pluginmanager.has_plugin("hypothesispytest"):  # the whole machine has none
        from hypothesis import HealthCheck, settings

        settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("no clock")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With `pytest -n` the rows are in the workers, and the table is printed where the workers are ruled from."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["faults"] = [attrs.asdict(row) for row in TABLE.rows.values()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """Take the rows of a worker that has ended; one that was killed gives none."""
    for row in getattr(node, "workeroutput", {}).get("faults", []):
        TABLE.add(Row(**row))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for report in terminalreporter.stats.get("rerun", []):  # what failed once is worth knowing, though it passed then
        terminalreporter.section(f"tried again: {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)
    if not TABLE.rows:
        return
    text = TABLE.to_markdown()
    terminalreporter.section("faults")
    terminalreporter.write_line(text)
    if file := config.getoption("--fault-table"):
        Path(file).write_text(f"{text}\n")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder that any user may walk and write. pytest's own are only for who runs it."""
    folder = Path(tempfile.mkdtemp(prefix="cr-test-", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Async tests run on both event loops."""
    backend: str = request.param
    return backend
