"""A place with a workspace in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.places import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "project").mkdir()
    return Place(tmp_path)
