"""The pytest fixture `fake_engine`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from container_runner.testing.engine import FakeEngine


@pytest.fixture
def fake_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    """A `FakeEngine` in the place of docker and podman; `engine="auto"` is docker, whatever this machine has."""
    try:
        import pytest_subprocess  # noqa: F401  is it installed?
    except ImportError:
        hint = "pip install 'agent-container-runner[testing]'"
        pytest.fail(f"The fixture fake_engine needs pytest-subprocess: {hint}", pytrace=False)
    from container_runner.testing.engine import FakeEngine
    from container_runner.testing.gateway import PlayedGateway

    engine = FakeEngine(request.getfixturevalue("fp"))
    monkeypatch.setattr("container_runner.stream.process.open_process", engine.open_process)
    monkeypatch.setattr("container_runner.gateway.gateway.Gateway", PlayedGateway)
    monkeypatch.setenv("CONTAINER_RUNNER_ENGINE", "docker")
    # A machine's docker may be podman by another name, which would change the commands.
    monkeypatch.setattr("container_runner.engine.engine._looks_like_podman", lambda path: "podman" in Path(path).name)
    yield engine
    engine.close()
