"""What the tests of the agents with dialects of their own have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from container_runner.agents import AgentRuntime, Command, CopilotRuntime, GeminiRuntime, QwenRuntime
from container_runner.options import Agent, ExecuteOptions
from container_runner.stream.messages import (
    AssistantMessage,
    Message,
    ResultMessage,
    UserMessage,
)

DATA = Path(__file__).parent.parent / "data/agents"
KINDS = (GeminiRuntime, QwenRuntime, CopilotRuntime)
ID = "11111111-2222-4333-8444-555555555555"


def options(prompt: str = "Hello", agent: dict[str, Any] | None = None, **others: Any) -> ExecuteOptions:
    return ExecuteOptions(prompt=prompt, agent=Agent(**{"name": "bot", **(agent or {})}), **others)


def command(kind: type[AgentRuntime], *, contained: bool = True, **fields: Any) -> Command:
    return kind().command(options(**fields), contained=contained)


def flags(kind: type[AgentRuntime], **fields: Any) -> list[str]:
    """What follows the command's name."""
    return list(command(kind, **fields).argv[1:])


def read(kind: type[AgentRuntime], lines: Sequence[bytes | dict[str, Any]], **fields: Any) -> list[Message]:
    """The messages that lines become, and those of their end."""
    reader = kind().reader(options(**fields))
    assert reader is not None
    messages: list[Message] = []
    for line in lines:
        messages += reader.read(json.dumps(line).encode() if isinstance(line, dict) else line)
    return [*messages, *reader.end()]


def captured(name: str) -> list[bytes]:
    """What a real one has said."""
    return (DATA / f"{name}.jsonl").read_bytes().splitlines()


def shape(messages: Sequence[Message]) -> list[Any]:
    """Each message as its class, and its blocks as theirs."""
    return [
        [type(block) for block in message.content]
        if isinstance(message, AssistantMessage | UserMessage)
        else type(message)
        for message in messages
    ]


def result_of(messages: Sequence[Message]) -> ResultMessage:
    result = messages[-1]
    assert isinstance(result, ResultMessage)
    return result
