"""Fixtures of the fault suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.scene import TABLE, Scene
from tests.integration.engines import Engines, RealEngine
from tests.integration.fixtures import on, skipped_if_unavailable


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
