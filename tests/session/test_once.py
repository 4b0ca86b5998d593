"""One prompt in a session: when it is given, when its input ends, and who is asked."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from container_runner.errors import AgentFailedError
from container_runner.session.acp import AcpCodec
from container_runner.session.codec import Event
from container_runner.session.once import OnePrompt


class Scene:
    """A session of one prompt, what its agent was told, and when it has to have left."""

    def __init__(self, *, patience: float | None = 5.0, asks: bool = True) -> None:
        self.told: list[Any] = []
        self.is_closed = False
        self.stream = SimpleNamespace(deadlines={}, touch=lambda: None)
        self.session = OnePrompt(AcpCodec(cwd="/workspace", asks=asks), prompt="go", patience=patience)
        self.session.connect(self, SimpleNamespace(prompted=print, note=print))
        self.session.begin(self.stream)  # type: ignore[arg-type]  # likewise of a stream

    def give(self, data: bytes, *, last: bool = False) -> None:
        self.told += map(json.loads, data.splitlines())

    def close_stdin(self) -> None:
        self.is_closed = True

    @property
    def takes_more(self) -> bool:
        return not self.is_closed

    def hear(self, **message: Any) -> list[Event]:
        events = self.session.codec.feed(json.dumps({"jsonrpc": "2.0", **message}).encode())
        for event in events:
            self.session.take(event)
        return events

    def begin(self) -> None:
        self.hear(id=1, result={"protocolVersion": 1})
        self.hear(id=2, result={"sessionId": "s1"})


async def test_the_prompt_is_given_when_the_agent_is_ready_and_its_input_ends_with_the_turn(anyio_backend: str) -> None:
    scene = Scene()
    scene.begin()
    assert [message["method"] for message in scene.told] == ["initialize", "session/new", "session/prompt"]
    assert scene.session.owes
    assert not scene.is_closed

    scene.hear(id=3, result={"stopReason": "end_turn"})

    assert scene.is_closed
    assert not scene.session.owes
    assert list(scene.stream.deadlines) == ["close"]


async def test_it_has_as_long_to_leave_as_there_is(anyio_backend: str) -> None:
    scene = Scene(patience=None)
    scene.begin()
    scene.hear(id=3, result={"stopReason": "end_turn"})

    assert scene.stream.deadlines == {}


@pytest.mark.parametrize(("asks", "option"), [(True, "no"), (False, "yes")])
async def test_nobody_is_asked(asks: bool, option: str, anyio_backend: str) -> None:
    scene = Scene(asks=asks)
    scene.begin()
    options = [{"optionId": "yes", "kind": "allow_once"}, {"optionId": "no", "kind": "reject_once"}]
    params = {"toolCall": {"toolCallId": "c"}, "options": options}
    scene.hear(id="ask", method="session/request_permission", params=params)

    assert scene.told[-1]["id"] == "ask"
    assert scene.told[-1]["result"]["outcome"]["optionId"] == option


async def test_a_turn_that_failed_is_a_run_that_failed(anyio_backend: str) -> None:
    failure = AgentFailedError("no")

    assert Scene().session.outcome(failure, 0) is failure
    assert Scene().session.outcome(None, 143) is None
