"""What the actors of a fleet hear, with actors that are played."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from container_runner.fleet import heartbeat
from container_runner.fleet.heartbeat import Heartbeat
from container_runner.stream import beat
from tests.integration.engines import wait_until


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is used of Ray."""
    exceptions = SimpleNamespace(RayError=type("RayError", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(exceptions=exceptions))
    monkeypatch.setattr(beat, "BEAT", 0.01)


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """Until it is set a call of Ray's does not return."""
    event = threading.Event()
    yield event
    event.set()


def actor(call: Callable[[], object]) -> Any:
    """One that counts what it hears: `call` is done before the beat is on its way, and tells whether it has come."""
    heard: list[None] = []

    def remote() -> Any:
        answer: Future[None] = Future()
        heard.append(None)
        if call():
            answer.set_result(None)
        return SimpleNamespace(future=lambda: answer)

    return SimpleNamespace(beat=SimpleNamespace(remote=remote), heard=heard)


def test_no_second_beat_is_sent_while_one_is_on_its_way() -> None:
    near, cut_off = actor(lambda: True), actor(lambda: False)

    beats = Heartbeat({"near": near, "cut off": cut_off})
    wait_until(lambda: len(near.heard) > 5, seconds=30)
    beats.stop()

    assert len(near.heard) > 5
    assert len(cut_off.heard) == 1


def test_one_that_is_given_up_hears_nothing_more_and_has_ended_when_its_patience_has() -> None:
    near, given_up = actor(lambda: True), actor(lambda: True)

    beats = Heartbeat({"near": near, "given up": given_up})
    wait_until(lambda: len(given_up.heard) > 0, seconds=30)
    rest = beats.give_up("given up")
    heard, before = len(given_up.heard), len(near.heard)
    wait_until(lambda: len(near.heard) > before + 2, seconds=30)
    beats.stop()

    assert len(near.heard) > before + 2
    assert len(given_up.heard) == heard > 0
    assert 0 <= rest <= beat.PATIENCE


def test_a_call_of_rays_that_hangs_does_not_hold_up_the_end_and_none_comes_behind_it(
    hanging: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "_STOP", 0.1)
    stuck, other = actor(hanging.wait), actor(lambda: True)
    beats = Heartbeat({"stuck": stuck, "other": other})
    wait_until(lambda: len(stuck.heard) > 0, seconds=30)

    beats.stop()

    assert beats._thread.is_alive()
    hanging.set()
    beats._thread.join(30)

    assert not beats._thread.is_alive()
    assert other.heard == []
