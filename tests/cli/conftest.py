"""What the tests of the command share."""

from __future__ import annotations

import pytest


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs mount the folder to be written, as an operator asks for: an engine that is played lays no overlay."""
    monkeypatch.setenv("CONTAINER_RUNNER_WORKSPACE_MODE", "rw")
