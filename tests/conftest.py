"""What all tests share."""

from __future__ import annotations

import pytest

from tests.integration.engines import NAMES


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here because pytest reads options before it comes to the conftest.py of a subfolder.
    parser.addoption(
        "--engine",
        action="append",
        choices=NAMES,
        help="the real engine to test with; may be repeated; without it they are all used",
    )


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Async tests run on both event loops."""
    backend: str = request.param
    return backend
