"""Spans and log records: what they tell, and that they cost and say nothing where nobody asked."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from container_runner.agents import ClaudeRuntime
from container_runner.config.container import ContainerConfig
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import Message
from container_runner.testing import FakeEngine

KEY = "sk-ant-api03-abcdefghijklmnop"
EXPORTER = InMemorySpanExporter()
RESULT = {
    "type": "result", "subtype": "success", "is_error": False, "result": "4", "num_turns": 2, "total_cost_usd": 0.25,
    "session_id": "s-1", "usage": {"input_tokens": 3, "output_tokens": 5, "cache_read_input_tokens": 10},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def provider() -> None:
    """OpenTelemetry as a program would configure it, which can be done once in a process."""
    configured = TracerProvider()
    configured.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(configured)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    EXPORTER.clear()
    yield
    EXPORTER.clear()


@pytest.fixture
def runner(tmp_path: Path) -> ContainerRunner:
    return ContainerRunner(ClaudeRuntime(), ContainerConfig(image="my/claude"), tmp_path / "state")


def options(prompt: str = "2 + 2?", **others: Any) -> ExecuteOptions:
    return ExecuteOptions(prompt=prompt, agent=Agent(name="bot"), **others)


async def all_of(runner: ContainerRunner, given: ExecuteOptions | None = None) -> list[Message]:
    return [message async for message in runner.execute(given or options())]


def spans() -> dict[str, ReadableSpan]:
    found = EXPORTER.get_finished_spans()
    by_name = {span.name.removeprefix("container_runner."): span for span in found}
    assert len(by_name) == len(found)
    return by_name


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_run_is_a_span_with_its_steps_below_it(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.messages([{"type": "system", "subtype": "init", "session_id": "s-1", "model": "claude-x"}, RESULT])

    with trace.get_tracer("test").start_as_current_span("mine") as mine:
        await all_of(runner)

    found = spans()
    assert set(found) == {"run", "create", "exec", "mine"}
    run = found["run"]
    assert run.parent == mine.get_span_context()
    for step in ("create", "exec"):
        assert found[step].parent == run.context
        assert (run.start_time or 0) <= (found[step].start_time or 0) <= (found[step].end_time or 0)
        assert (found[step].end_time or 0) <= (run.end_time or 0)
    assert attributes(run) | {
        "container_runner.run_id": "",
        "container.name": "",
        "container_runner.engine": "",
    } == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "bot",
        "gen_ai.conversation.id": "s-1",
        "gen_ai.response.model": "claude-x",
        "gen_ai.usage.input_tokens": 13,
        "gen_ai.usage.output_tokens": 5,
        "container.image.name": "my/claude",
        "container.name": "",
        "process.exit.code": 0,
        "container_runner.run_id": "",
        "container_runner.engine": "",
        "container_runner.ephemeral": True,
        "container_runner.outcome": "succeeded",
        "container_runner.turns": 2,
        "container_runner.cost_usd": 0.25,
    }
    assert attributes(found["exec"]) == {"process.exit.code": 0}
    assert f"--name={attributes(run)['container.name']}" in fake_engine.run_argv
    assert run.status.status_code is StatusCode.UNSET


async def test_a_failed_run_is_an_error(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.messages([], exit_code=7)

    await all_of(runner)

    found = spans()
    assert set(found) == {"run", "create", "exec"}
    run = found["run"]
    assert (attributes(run)["error.type"], attributes(run)["process.exit.code"]) == ("agent_failed", 7)
    assert run.status.status_code is StatusCode.ERROR
    assert run.status.description == "claude exited with code 7."
    assert attributes(found["exec"])["process.exit.code"] == 7


async def test_a_container_that_can_not_be_made_is_an_error_of_that_step(
    fake_engine: FakeEngine, runner: ContainerRunner
) -> None:
    any_ = fake_engine.fp.any
    stderr = "Error response from daemon: No such image: my/claude:latest"
    for words, answer in (
        (["--version"], "Docker version 28.2.2, build e6534b4"),
        (["ps", any_()], ""),
        (["rm", any_()], ""),
    ):
        fake_engine.fp.register(["docker", *words], stdout=answer, occurrences=10)
    fake_engine.fp.register(["docker", "run", any_()], stderr=stderr, returncode=125)

    await all_of(runner)

    found = spans()
    assert set(found) == {"run", "create"}
    for span in found.values():
        assert (attributes(span)["error.type"], span.status.status_code) == ("image_not_found", StatusCode.ERROR)


async def test_an_agent_that_could_not_start_in_time_is_an_error_of_that_step(
    fake_engine: FakeEngine, runner: ContainerRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container_runner.runner.run.PULL_TIMEOUT", 0.01)
    monkeypatch.setattr("container_runner.runner.run.RUN_TIMEOUT", 0.01)
    fake_engine.fp.register(["docker", "run", fake_engine.fp.any()], wait=0.2)
    fake_engine.reply("never said")

    await all_of(runner)

    found = spans()
    assert set(found) == {"run", "create"}
    assert {attributes(span)["error.type"] for span in found.values()} == {"engine_timeout"}


async def test_an_agent_that_is_stopped_has_a_span_for_it(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.messages([{"type": "system"}], hang=True)

    await all_of(runner, options(timeout=2, grace=1))  # it has begun by then, on a busy machine too

    found = spans()
    assert set(found) == {"run", "create", "exec", "stop"}
    assert attributes(found["run"])["error.type"] == "total_timeout"


async def test_a_consumer_that_leaves_ends_every_span(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.messages([{"type": "system"}], hang=True)

    async with aclosing(runner.execute(options(grace=1))) as messages:
        async for _ in messages:
            assert not trace.get_current_span().get_span_context().is_valid  # ours is nobody else's
            break

    found = spans()
    assert set(found) == {"run", "create", "exec", "stop"}
    assert attributes(found["run"])["container_runner.outcome"] == "stopped"
    assert found["run"].status.status_code is StatusCode.UNSET


async def test_no_secret_is_in_a_span_or_in_the_log(
    fake_engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    caplog.set_level(logging.DEBUG, "container_runner")
    runner = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="my/claude"), tmp_path / "state", records=False)
    fake_engine.messages(
        [{**RESULT, "is_error": True, "result": f"bad key {KEY}", "session_id": KEY}], exit_code=1, stderr=KEY
    )

    await all_of(runner, options(f"use {KEY}"))

    told = [attributes(span) for span in spans().values()] + [span.status.description for span in spans().values()]
    assert "api03" not in str(told)
    assert "api03" not in str([vars(record) for record in caplog.records])


async def test_the_log_tells_what_a_program_wants_to_know(
    fake_engine: FakeEngine, runner: ContainerRunner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "container_runner")
    fake_engine.messages([RESULT])

    await all_of(runner)

    started, ended = (record for record in caplog.records if record.levelno == logging.INFO)
    for record in (started, ended):
        assert vars(record)["agent"] == "bot"
        assert vars(record)["run_id"] == vars(started)["run_id"]
    assert vars(started)["image"] == "my/claude"
    facts = ("outcome", "kind", "exit_code", "turns", "cost_usd", "session_id")
    assert [vars(ended)[name] for name in facts] == ["succeeded", None, 0, 2, 0.25, "s-1"]
    assert any("container" in vars(record) for record in caplog.records if record.levelno == logging.DEBUG)


SILENT = """
import sys, anyio
from container_runner import *
async def main():
    config = ContainerConfig(image="my/claude", engine="docker")
    runner = ContainerRunner(ClaudeRuntime(), config, sys.argv[1])
    async for message in runner.execute(ExecuteOptions(prompt="Hello", agent=Agent(name="bot"))):
        print(message.kind)
anyio.run(main)
print(*sorted(name for name in sys.modules if "opentelemetry" in name))
"""


def test_a_program_that_asked_for_nothing_gets_no_output_and_no_import(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way of the records, which is worth a warning")
    environ = {"PATH": "/nowhere", "HOME": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-c", SILENT, tmp_path], env=environ, capture_output=True, text=True, check=True
    )

    assert (done.stdout.split(), done.stderr) == (["engine_not_found"], "")
