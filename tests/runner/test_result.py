"""`ContainerRunner.run`: one call that gives a result, or raises."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from container_runner import errors
from container_runner.agents import ClaudeRuntime, CodexRuntime, CommandRuntime
from container_runner.config.container import ContainerConfig
from container_runner.errors import (
    ConfigError,
    ContainerRunnerError,
    OutOfMemoryError,
    PermissionDeniedError,
    TotalTimeoutError,
    error_class,
)
from container_runner.options import Agent, ExecuteOptions
from container_runner.records.records import Records
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import ErrorMessage, Message, ResultMessage
from container_runner.testing import FakeEngine
from container_runner.testing.replies import FAILURES


@pytest.fixture
def runner(tmp_path: Path) -> ContainerRunner:
    return ContainerRunner(ClaudeRuntime(), ContainerConfig(image="my/claude"), tmp_path / "state")


def options(prompt: str = "Hello", **others: Any) -> ExecuteOptions:
    return ExecuteOptions(prompt=prompt, agent=Agent(name="bot"), **others)


async def test_a_run_gives_what_it_came_to(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    usage = {"input_tokens": 10, "output_tokens": 3}
    fake_engine.reply("4", cost_usd=0.25, usage=usage, structured_output={"sum": 4}, session_id="abc")

    result = await runner.run(options())

    assert (result.text, result.session_id, result.turns, result.cost_usd) == ("4", "abc", 1, 0.25)
    assert result.usage is not None
    assert (result.usage.total, result.structured_output, result.changes) == (13, {"sum": 4}, None)
    assert result.messages == ()
    assert result.record is not None
    records = Records(str(runner.state_dir))
    assert records.find(result.record.run_id).name == result.record.name
    with records.open(result.record) as transcript:
        assert b'"4"' in os.read(transcript, 100_000)


async def test_messages_are_kept_and_told_if_they_are_wanted(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    told: list[Message] = []
    fake_engine.reply("4")

    result = await runner.run(options(), on_message=told.append, keep_messages=True)

    assert len(told) == 3
    assert [type(message) for message in result.messages] == [type(message) for message in told]
    assert isinstance(result.messages[-1], ResultMessage)


async def test_a_command_gives_its_output(fake_engine: FakeEngine, tmp_path: Path) -> None:
    fake_engine.messages(["one", "two"])
    runner = ContainerRunner(CommandRuntime(["agent"]), ContainerConfig(image="i"), tmp_path, records=False)

    result = await runner.run(options())

    assert (result.text, result.cost_usd, result.record) == ("one\ntwo", None, None)


@pytest.mark.parametrize("kind", FAILURES)
async def test_every_failure_is_raised_as_its_class(
    fake_engine: FakeEngine, runner: ContainerRunner, kind: str
) -> None:
    fake_engine.fail(kind)

    with pytest.raises(error_class(kind)) as caught:
        await runner.run(options())

    assert caught.value.kind == kind
    assert type(caught.value) is error_class(kind)
    assert caught.value.result.record.summary.kind == kind


async def test_an_error_has_the_session_to_go_on_with(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.messages([{"type": "system", "subtype": "init", "session_id": "abc"}], hang=True)

    with pytest.raises(TotalTimeoutError) as caught:
        await runner.run(options(timeout=1.0))

    assert caught.value.result.session_id == "abc"


async def test_what_a_callback_raises_ends_the_run(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.messages([{"type": "system", "subtype": "init"}], hang=True)

    with pytest.raises(ZeroDivisionError):
        await runner.run(options(), on_message=lambda _: 1 / 0)

    client = next(call for call in fake_engine.calls if call.argv == fake_engine.agent_argv)
    assert client.returncode == 0  # it has ended by its lease


async def test_a_cancelled_run_is_stopped(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.messages([], hang=True)

    with anyio.move_on_after(0.3):
        await runner.run(options())

    client = next(call for call in fake_engine.calls if call.argv == fake_engine.agent_argv)
    assert client.returncode is not None


KINDS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ContainerRunnerError)),
    key=lambda kind: kind.kind,
)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not ConfigError])
def test_an_error_message_can_be_raised(kind: type[ContainerRunnerError]) -> None:
    message = ErrorMessage(kind=kind.kind, message="M.", next_step="N.", exit_code=3, signal=9, stderr="S")

    error = message.to_error()

    assert type(error) is kind
    assert (error.message, error.next_step, error.stderr) == ("M.", "N.", "S")
    assert ErrorMessage.from_error(error).message == "M."


def test_a_message_of_the_future_can_be_raised() -> None:
    error = ErrorMessage(kind="of the future", message="M.", next_step="N.").to_error()

    assert type(error) is ContainerRunnerError


def test_an_error_that_was_told_knows_its_exit_code_and_signal() -> None:
    told = ErrorMessage.from_error(OutOfMemoryError("M.", exit_code=137))
    assert told.to_error().exit_code == 137
    killed = ErrorMessage(kind="agent_killed", message="M.", next_step="N.", signal=11).to_error()
    assert getattr(killed, "signal", None) == 11


def call(key: str, name: str, *, is_error: bool) -> list[dict[str, Any]]:
    """A call of a tool, and what it gave back."""
    use = {"type": "tool_use", "id": key, "name": name, "input": {}}
    gave = {"type": "tool_result", "tool_use_id": key, "content": "…", "is_error": is_error}
    return [
        {"type": "assistant", "message": {"content": [use]}},
        {"type": "user", "message": {"content": [gave]}},
    ]


def success(*denied: tuple[str, str]) -> dict[str, Any]:
    denials = [{"tool_use_id": key, "tool_name": name} for key, name in denied]
    return {"type": "result", "subtype": "success", "is_error": False, "permission_denials": denials}


DENIED = call("1", "Bash", is_error=True)


@pytest.mark.parametrize(
    ("lines", "fails"),
    [
        ([*DENIED, success(("1", "Bash"))], True),
        ([*call("0", "Read", is_error=False), *DENIED, success(("1", "Bash"))], True),
        ([*DENIED, *call("2", "Write", is_error=False), success(("1", "Bash"))], False),
        ([*DENIED, success()], False),
        ([*call("1", "ExitPlanMode", is_error=True), success(("1", "ExitPlanMode"))], False),
    ],
    ids=["nothing but a refusal", "a refusal at last", "another way was found", "no refusal", "a plan"],
)
async def test_an_agent_that_gives_up_at_a_refusal_has_failed(
    fake_engine: FakeEngine, runner: ContainerRunner, lines: list[Any], fails: bool
) -> None:
    fake_engine.messages(lines)

    if not fails:
        await runner.run(options())
        return
    with pytest.raises(PermissionDeniedError, match="not permitted to use Bash") as caught:
        await runner.run(options())
    assert caught.value.tools == ("Bash",)
    assert "--allowed-tool" in caught.value.next_step


async def test_another_agents_lines_come_to_the_same(fake_engine: FakeEngine, tmp_path: Path) -> None:
    fake_engine.transcript(Path(__file__).parents[1] / "data/agents/codex.jsonl")
    runner = ContainerRunner(CodexRuntime(), ContainerConfig(image="my/codex"), tmp_path / "state")

    result = await runner.run(options())

    assert (result.text, result.turns, result.cost_usd) == ("All done.", None, None)
    assert result.session_id == "01a21ae6-ae51-7733-8117-2510a46baad9"
    assert result.usage is not None
    assert (result.usage.input_tokens, result.usage.cache_read_input_tokens) == (180, 20)
    assert result.record is not None
    with Records(runner.state_dir).open(result.record) as transcript:
        text = os.read(transcript, 65536).decode()
    assert '"original":{"type":"turn.completed"' in text.replace(" ", "")
    assert result.record.summary.turns is None


async def test_an_agent_that_is_not_in_the_image_is_told_with_how_to_get_one(
    fake_engine: FakeEngine, tmp_path: Path
) -> None:
    fake_engine.fail("command_not_found")
    runner = ContainerRunner(CodexRuntime(), ContainerConfig(image="my/codex"), tmp_path / "state")

    with pytest.raises(errors.CommandNotFoundError) as caught:
        await runner.run(options())

    assert "container-runner image build codex" in caught.value.next_step
