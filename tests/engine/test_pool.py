"""Containers that are ready before they are needed. What depends on an engine is in tests/integration/test_pool.py."""

from __future__ import annotations

from typing import Any, NoReturn

import anyio
import pytest

from container_runner.engine.pool import Pool


async def test_an_error_that_is_not_ours_does_not_end_the_pool(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end the block that the pool is for, and every run in it."""
    monkeypatch.setattr("container_runner.engine.pool.REFILL_DELAY", 0)
    tries = 0

    def make_plan() -> NoReturn:
        nonlocal tries
        tries += 1
        raise OSError(5, "Input/output error")

    no_manager: Any = None
    pool = Pool(no_manager, make_plan, 1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pool.fill)
        await anyio.wait_all_tasks_blocked()
        assert tries == 1

        assert pool.take("a digest") is None
        await anyio.wait_all_tasks_blocked()
        assert tries == 2
        tasks.cancel_scope.cancel()
    assert "Input/output error" in caplog.text
