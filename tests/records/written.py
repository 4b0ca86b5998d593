"""Runs and recorders at work, and what they leave."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from container_runner.agents import ClaudeRuntime
from container_runner.config.container import ContainerConfig
from container_runner.config.limits import RecordLimits
from container_runner.options import Agent, ExecuteOptions
from container_runner.records.recorder import Recorder
from container_runner.runner import ContainerRunner
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import Message, parse_line

KEY = "sk-ant-api03-abcdefghijklmnop"
RESULT = {
    "type": "result", "subtype": "success", "is_error": False, "result": "4", "num_turns": 2, "total_cost_usd": 0.25,
    "session_id": "0b7e3a52-0000-4000-8000-000000000000", "usage": {"input_tokens": 3, "output_tokens": 5},
}  # fmt: skip


def options(prompt: str = "2 + 2?", **others: Any) -> ExecuteOptions:
    return ExecuteOptions(prompt=prompt, **{"agent": Agent(name="bot"), **others})


def runner(state: Path, *, records: bool | RecordLimits = True, runtime: Any = None, **config: Any) -> ContainerRunner:
    box = ContainerConfig(**{"image": "my/claude", **config})
    return ContainerRunner(runtime or ClaudeRuntime(), box, state, records=records)


async def all_of(runner: ContainerRunner, given_: ExecuteOptions | None = None) -> list[Message]:
    return [message async for message in runner.execute(given_ or options())]


def files(state: Path, suffix: str) -> list[Path]:
    return sorted((state / "runs" / "bot").glob(f"*{suffix}"))


def lines(state: Path) -> list[dict[str, Any]]:
    """The lines of the only transcript."""
    (path,) = files(state, ".jsonl")
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def said(state: Path, source: str = "agent") -> list[Any]:
    return [line["message"] for line in lines(state) if line["from"] == source]


def summary(state: Path) -> dict[str, Any]:
    (path,) = files(state, ".json")
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


@contextlib.contextmanager
def recorder(state: Path, *, limits: RecordLimits | None = None, **config: Any) -> Iterator[Recorder]:
    """A recorder at work, without a run around it."""
    plan = runner(state, engine="docker", **config).plan(options())
    plain = config.get("env", {})
    at_work = Recorder.start(plan, options(), limits or RecordLimits(), plain=plain)
    try:
        yield at_work
    finally:
        at_work.finish(None)


def take(at_work: Recorder, *given_: bytes | OversizedLine) -> None:
    """Lines as a stream would hand them over."""
    messages = [line if isinstance(line, OversizedLine) else parse_line(line) for line in given_]
    at_work.record(list(given_), [message for message in messages if message is not None])
