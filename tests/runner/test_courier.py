"""Sessions of a box that can not see them, on their way there, and fetched from a hostile one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from container_runner.errors import WorkspaceError
from container_runner.runner import courier

PLAN: Any = SimpleNamespace(
    mounted=SimpleNamespace(sent={".": "."}), container="name", run_id="run", sessions=None, fetch_in=lambda name: ()
)


class Engine:
    """One whose box tells nothing."""

    @asynccontextmanager
    async def pipe(self, *_: object) -> AsyncIterator[None]:
        yield


async def fetch(monkeypatch: pytest.MonkeyPatch, unpack: Any) -> list[str]:
    """What is noted as lost."""
    noted: list[str] = []
    record: Any = SimpleNamespace(note=lambda kind, *, lost: noted.append(lost))
    engine: Any = Engine()
    monkeypatch.setattr(courier, "unpack", unpack)
    await courier.fetch_sessions(engine, PLAN, record)
    return noted


@pytest.mark.parametrize(
    "error", [ValueError("embedded null byte"), RecursionError(), ExceptionGroup("two", [OSError()]), TimeoutError()]
)
async def test_whatever_a_box_brings_about_the_end_of_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def unpack(*_: object) -> int:
        raise error

    assert len(await fetch(monkeypatch, unpack)) == 1


async def test_why_they_are_lost_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unpack(*_: object) -> int:
        raise WorkspaceError("It is too long.")

    assert await fetch(monkeypatch, unpack) == ["It is too long."]


async def test_a_cancellation_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unpack(*_: object) -> int:
        scope.cancel()
        await anyio.sleep_forever()
        return 0

    with anyio.CancelScope() as scope:
        await fetch(monkeypatch, unpack)

    assert scope.cancelled_caught


async def test_sessions_do_not_travel_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang() -> AsyncIterator[bytes]:
        await anyio.sleep_forever()
        yield b""

    class Hanging:
        has_ended = False

        @asynccontextmanager
        async def pipe(self, *_: object) -> AsyncIterator[AsyncIterator[bytes]]:
            try:
                yield hang()
            finally:
                self.has_ended = True

    monkeypatch.setattr(courier, "FETCH_TIMEOUT", 0.05)
    plan: Any = SimpleNamespace(
        mounted=SimpleNamespace(sent={".": "."}),
        container="name",
        resumes=True,
        sessions=tmp_path,
        send_in=lambda _: (),
    )
    engine: Any = Hanging()
    with anyio.fail_after(20), pytest.raises(TimeoutError):
        await courier.send_sessions(engine, plan)

    assert engine.has_ended
