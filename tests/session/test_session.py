"""A session with an agent that is played, on both event loops."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from container_runner.agents.acp import AcpRuntime
from container_runner.errors import (
    ConfigError,
    ContainerRunnerError,
    ControlTimeoutError,
    IdleTimeoutError,
    IncompleteOutputError,
    ProtocolError,
    RequestRefusedError,
    ResultTimeoutError,
    UnsupportedRuntimeError,
)
from container_runner.options import Agent, ExecuteOptions
from container_runner.session import session as module
from container_runner.session.asks import Allow, Deny, PermissionRequest, Question, Reply
from container_runner.session.control import ControlCodec
from container_runner.session.hooks import Hook, HookCall
from container_runner.session.session import Session
from container_runner.session.stream import LiveStream
from container_runner.session.tools import Tool, tool
from container_runner.stream.messages import AssistantMessage, Message, ResultMessage
from container_runner.stream.process import Process, settle

AGENT = Path(__file__).with_name("agent.py")


class Notes:
    """What was recorded."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def prompted(self, prompt: str) -> None:
        self.said.append(prompt)

    def note(self, type: str, /, **facts: Any) -> None:  # noqa: A002  the recorder's name
        self.said.append((type, facts))

    def record(self, lines: list[Any], messages: list[Message]) -> None:
        self.said += messages


@asynccontextmanager
async def opened(
    *words: str,
    options: dict[str, Any] | None = None,
    tools: tuple[Tool, ...] = (),
    hooks: tuple[Hook, ...] = (),
    **more: Any,
) -> AsyncIterator[Session]:
    """A session with the agent on this machine, and what the runner does for one."""
    process = await Process.start([sys.executable, "-S", str(AGENT), *words], hold_stdin=True)
    session = Session(ControlCodec(tools), tools, **more)
    session.codec.add_hooks(hooks)
    asked = ExecuteOptions(prompt="", agent=Agent(name="bot"), **(options or {}))
    stream = LiveStream(process, asked, session.codec, session.take, lambda: session.owes)

    async def drive() -> None:
        error: ContainerRunnerError | None = None
        try:
            while await stream.read():
                await session.wait_for_room()
            error = session.outcome(None, await process.wait())
        except ContainerRunnerError as raised:
            error = raised
        finally:
            session.end(error)

    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            session.run_in(tasks)
            session.connect(process, Notes())
            session.begin(stream)
            tasks.start_soon(drive)
            try:
                with anyio.fail_after(20):
                    await session.wait_until_ready()
                    yield session
                    await session.close()
            except Exception as error:
                failure = error
            tasks.cancel_scope.cancel()
    finally:
        await settle(partial(process.terminate, 2))
        process.close()
    if failure is not None:
        raise failure


async def test_turns_are_answered_one_by_one(anyio_backend: str) -> None:
    async with opened() as session:
        first = await session.turn("say one")
        second = await session.turn(["say two", "and more"])

        assert (first.text, second.text) == ("one", "two")
        assert [type(said) for said in second.messages] == [AssistantMessage, ResultMessage]
        assert session.session_id == "s1"


async def test_two_prompts_at_once_are_both_waited_for(anyio_backend: str) -> None:
    async with opened() as session:
        await session.send("say one")
        await session.send("say two")

        said = [message.result async for message in session.receive() if isinstance(message, ResultMessage)]

        assert said == ["one", "two"]
        assert [message async for message in session.receive()] == []


async def test_a_turn_that_nobody_asked_for_does_not_end_ours(anyio_backend: str) -> None:
    async with opened() as session:
        turn = await session.turn("own")

        assert [said.result for said in turn.messages if isinstance(said, ResultMessage)] == ["mine", "yours"]
        assert turn.text == "yours"


async def test_all_messages_come_until_the_session_ends(anyio_backend: str) -> None:
    async with opened() as session:
        await session.send("say one")
        results = []
        async for said in session:
            if isinstance(said, ResultMessage):
                results.append(said.result)
                if len(results) == 1:
                    await session.send("say two")
                else:
                    await session.close()

        assert results == ["one", "two"]
        with pytest.raises(ConfigError, match="a session that is open"):
            await session.send("three")


async def test_a_function_of_the_callers_answers(anyio_backend: str) -> None:
    async def answer(ask: PermissionRequest | Question) -> Allow | Deny:
        assert isinstance(ask, PermissionRequest)
        return Allow() if ask.input["command"] == "ls" else Deny(message="no")

    async with opened(answerer=answer) as session:
        assert (await session.turn("may ls")).text == "allow"
        assert (await session.turn("may rm")).text == "no"


async def test_who_reads_answers_if_nobody_else_does(anyio_backend: str) -> None:
    async with opened() as session:
        await session.send("may ls")
        results = []
        async for said in session.receive():
            if isinstance(said, PermissionRequest):
                with pytest.raises(ConfigError, match="decision"):
                    await session.answer(said, Reply(answers={}))
                await session.answer(said, Deny(message="no"))
                await session.answer(said, Allow())
            elif isinstance(said, ResultMessage):
                results.append(said.result)

        assert results == ["no"]


@pytest.mark.parametrize("has_function", [True, False])
async def test_what_nobody_answers_in_time_is_denied(anyio_backend: str, has_function: bool) -> None:
    async def sleep(ask: object) -> Allow:
        await anyio.sleep_forever()
        return Allow()

    async with opened(answerer=sleep if has_function else None, ask_timeout=0.1) as session:
        assert (await session.turn("may ls")).text == "Nobody has answered in time."


async def test_a_function_whose_answer_is_not_wanted_any_more_is_cancelled(anyio_backend: str) -> None:
    ended = []

    async def sleep(ask: object) -> Allow:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(ask)
        return Allow()

    async with opened(answerer=sleep) as session:
        assert (await session.turn("withdraw")).text == "withdrawn"

        assert len(ended) == 1


async def test_a_function_that_fails_denies_and_its_error_comes_out_as_it_is(anyio_backend: str) -> None:
    async def fail(ask: object) -> Allow:
        raise ZeroDivisionError

    async with opened(answerer=fail) as session:
        with pytest.raises(ZeroDivisionError):
            await session.turn("may ls")
        rest = [said.result async for said in session.receive() if isinstance(said, ResultMessage)]
        assert rest == ["The one who is asked has failed."]
        assert (await session.turn("say on")).text == "on"


async def test_what_the_block_raises_comes_out_as_it_is(anyio_backend: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with opened():
            raise ZeroDivisionError


async def test_the_agent_calls_a_tool(anyio_backend: str) -> None:
    @tool
    def add(x: int) -> int:
        """Add one."""
        return x + 1

    async with opened(tools=(add,)) as session:
        assert (await session.turn('call add {"x": 41}')).text == "42"
        assert (await session.turn("call sub {}")).text == "There is no tool 'sub'."


async def test_an_interrupt_ends_the_turn_and_the_session_goes_on(anyio_backend: str) -> None:
    async with opened() as session:
        await session.interrupt()  # nothing to interrupt, and nothing to wait for
        await session.send("hang")
        await session.interrupt()

        (cut,) = [said async for said in session.receive()]
        assert isinstance(cut, ResultMessage)
        assert cut.is_error
        assert (await session.turn("say on")).text == "on"


async def test_an_interrupt_while_another_task_reads(anyio_backend: str) -> None:
    async with opened() as session:
        results: list[ResultMessage] = []

        async def read() -> None:
            results.extend([said async for said in session.receive() if isinstance(said, ResultMessage)])

        await session.send("hang")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.sleep(0.05)
            await session.interrupt()

        assert [result.subtype for result in results] == ["error_during_execution"]


async def test_an_interrupt_that_does_not_come_back_ends_the_session(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERRUPT_PATIENCE", 0.3)
    async with opened() as session:
        await session.send("deaf")
        with pytest.raises(ControlTimeoutError, match="did not come back from an interrupt"):
            await session.interrupt()


async def test_a_request_that_is_refused_or_not_answered_does_not_end_the_session(anyio_backend: str) -> None:
    async with opened(control_timeout=2.0) as session:
        await session.set_model("another")
        with pytest.raises(RequestRefusedError, match="claude refuses set_model: no such model"):
            await session.set_model("none")
        with pytest.raises(ControlTimeoutError, match="did not answer set_model"):
            await session.set_model("silent")

        assert (await session.turn("say on")).text == "on"


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [("die 0", IncompleteOutputError), ("die 3", IncompleteOutputError), ("kill 9", IncompleteOutputError)],
)
async def test_an_agent_that_ends_in_a_turn_is_an_error(
    anyio_backend: str, prompt: str, kind: type[ContainerRunnerError]
) -> None:
    with pytest.raises(kind):
        async with opened() as session:
            await session.turn(prompt)


async def test_an_agent_that_ends_unseen_is_an_error_at_the_end(anyio_backend: str) -> None:
    async def leave_it_alone() -> None:
        async with opened() as session:
            await session.send("die 0")
            await anyio.sleep(1)

    with pytest.raises(IncompleteOutputError):
        await leave_it_alone()


async def test_a_broken_control_message_ends_the_session(anyio_backend: str) -> None:
    with pytest.raises(ProtocolError):
        async with opened() as session:
            await session.turn("break")


async def test_an_agent_that_never_gets_ready(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READY_TIMEOUT", 0.3)
    with pytest.raises(ControlTimeoutError, match="did not get ready"):
        async with opened("mute"):
            pytest.fail("it began")


async def test_an_agent_that_does_not_leave(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_PATIENCE", 0.3)
    monkeypatch.setattr(Process, "close_stdin", lambda _: None)
    with pytest.raises(ResultTimeoutError, match="was still there"):
        async with opened():
            pass


async def test_silence_counts_while_the_agent_owes_an_answer_and_only_then(anyio_backend: str) -> None:
    async def answer(ask: object) -> Allow:
        await anyio.sleep(2.2)
        return Allow()

    async with opened(options={"idle_timeout": 2.0}, answerer=answer) as session:
        await anyio.sleep(2.2)
        assert (await session.turn("may ls")).text == "allow"
        with pytest.raises(IdleTimeoutError):
            await session.turn("hang")


async def test_nobody_reads_and_the_agent_waits_but_a_request_is_answered(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNREAD", 100_000)
    async with opened() as session:
        await session.send("flood 200")
        await anyio.sleep(0.5)
        held = session._unread
        assert 100_000 <= held < 1_500_000

        await session.set_model("another")

        assert sum([isinstance(said, AssistantMessage) async for said in session.receive()]) == 200


# Hooks

DENIED = {"hookEventName": "PreToolUse", "permissionDecision": "deny"}


@pytest.mark.parametrize(
    ("event", "answer", "told"),
    [
        ("PreToolUse", None, {}),
        ("PreToolUse", {"systemMessage": "hm"}, {"systemMessage": "hm"}),
        ("PreToolUse", Deny(message="no"), {"hookSpecificOutput": {**DENIED, "permissionDecisionReason": "no"}}),
        ("Stop", Deny(message="no"), {"continue": False, "stopReason": "no"}),
    ],
)
async def test_a_hook_of_the_callers_is_called(event: str, answer: Any, told: dict[str, Any]) -> None:
    called = []

    async def hook(call: HookCall) -> Any:
        called.append((call.event, call.input, call.tool_use_id))
        return answer

    async with opened(hooks=(Hook(event, hook),)) as session:
        turn = await session.turn("hook Bash")

    assert called == [(event, {"tool_name": "Bash"}, "t1")]
    assert json.loads(turn.text) == told


async def test_a_hook_that_takes_too_long_is_a_denial() -> None:
    async with opened(hooks=(Hook("PreToolUse", lambda _: anyio.sleep(1000), timeout=0.05),)) as session:
        turn = await session.turn("hook Bash")

    reason = {"permissionDecisionReason": "The hook took too long."}
    assert json.loads(turn.text) == {"hookSpecificOutput": {**DENIED, **reason}}


@pytest.mark.parametrize(("said", "raised"), [(ValueError("mine"), ValueError), (True, ConfigError)])
async def test_what_a_hook_raises_is_a_denial_and_is_raised_where_the_caller_reads(
    said: Any, raised: type[Exception]
) -> None:
    async def hook(call: HookCall) -> Any:
        del call
        if isinstance(said, Exception):
            raise said
        return said

    async with opened(hooks=(Hook("PreToolUse", hook),)) as session:
        with pytest.raises(raised):
            await session.turn("hook Bash")


async def test_what_a_hook_raises_is_raised_also_where_the_turn_is_over_before_it_is_read() -> None:
    called = anyio.Event()

    async def hook(call: HookCall) -> None:
        del call
        called.set()
        raise ValueError("mine")

    async with opened(hooks=(Hook("PreToolUse", hook),)) as session:
        await session.send("hook Bash")
        with anyio.fail_after(60):
            await called.wait()
            while session._turns == 0:
                await anyio.sleep(0.01)
        with pytest.raises(ValueError, match="mine"):
            _ = [said async for said in session.receive()]


def test_what_is_no_function_is_no_hook() -> None:
    with pytest.raises(ConfigError, match=r"hook\.function"):
        Hook("Stop", "rm -rf")  # type: ignore[arg-type]  # which is what is tried


def test_an_agent_without_hooks_refuses_them() -> None:
    async def hook(call: HookCall) -> None:
        del call

    codec = AcpRuntime("gemini").codec(ExecuteOptions(prompt="", agent=Agent(name="bot")), asks=False, tools=())

    codec.add_hooks(())
    with pytest.raises(UnsupportedRuntimeError, match="gemini has no hooks in a live session"):
        codec.add_hooks([Hook("Stop", hook)])


@pytest.mark.parametrize("content", ["say @/here/a.txt", ["say @/here/a.txt", {"type": "text", "text": "@/here"}]])
async def test_paths_in_what_is_sent_are_those_of_the_container(content: Any) -> None:
    async with opened() as session:
        session.translate = lambda text: text.replace("/here", "/workspace")
        turn = await session.turn(content)

    assert turn.text == "@/workspace/a.txt"
