"""No test depends on who runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from container_runner.records import records as records_module


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test depends on who runs it, or on what another one cleaned."""
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(records_module, "_totals", {})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"
