"""What holds for every live protocol."""

from __future__ import annotations

import pytest

from container_runner.errors import RequestRefusedError
from container_runner.session.asks import Ask, Content, Decision
from container_runner.session.codec import Codec, Event, Request, shown
from container_runner.stream.lines import OversizedLine


class Small(Codec):
    """An agent that has nothing but prompts."""

    agent = "small"

    def start(self) -> bytes:
        return b""

    def feed(self, line: bytes | OversizedLine) -> list[Event]:
        del line
        return []

    def prompt(self, content: Content, *, id: str) -> bytes:  # noqa: A002  the protocol's name
        del content, id
        return b""

    def reply(self, ask: Ask, decision: Decision) -> bytes:
        del ask, decision
        return b""

    def interrupt(self) -> Request:
        return Request(b"", None)


@pytest.mark.parametrize("request_", ["set_model", "set_permission_mode", "stop_task"])
def test_what_an_agent_does_not_have_is_refused_by_name(request_: str) -> None:
    with pytest.raises(RequestRefusedError, match=f"small has no {request_} in a live session"):
        getattr(Small(), request_)("x")


def test_a_reason_is_cut_between_words() -> None:
    token = "sk-" + "a1" * 40

    assert shown("no\nsuch  model") == "no such model"
    assert shown("x " * 220 + token) == "x " * 220 + "…"
