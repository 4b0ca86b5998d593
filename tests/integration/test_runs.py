"""What is shown is what runs, and a runner is as good as the runtime in it."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.abc
import pytest

from container_runner import CommandRuntime, Engine, Plan, Runtime
from container_runner.box.environment import host_environment
from container_runner.stream import process
from tests.integration.runs import ON_DOCKER, ON_ROOTFUL, Box, collect, error_of, lines_of, result_of, said


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """All commands that are started from here on; ids are all zeros, so that two runs have the same."""
    started: list[tuple[str, ...]] = []

    async def recording(command: Sequence[str], **others: Any) -> anyio.abc.Process:
        started.append(tuple(command))
        return await anyio.open_process(command, **others)

    monkeypatch.setattr(process, "open_process", recording)
    monkeypatch.setattr(secrets, "token_hex", lambda size: "00" * size)
    return started


def plan_of(box: Box, **fields: Any) -> Plan:
    async def plan() -> Plan:
        runner = box.runner(**fields)
        return runner.plan(box.options("hello"), engine=await Engine.probe(box.engine.binary, host_environment()))

    return anyio.run(plan)


def timeless(command: Sequence[str]) -> list[str]:
    """The command without the time at which its container ends."""
    return [word for word in command if "container-runner.deadline=" not in word]


def test_execute_runs_what_plan_shows(
    box: Box, commands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "value-of-the-token")
    fields: dict[str, Any] = {"secrets": ["TOKEN"], "env": {"KEY": "value-of-the-key"}, "memory": "300m"}
    plan = plan_of(box, **fields)
    commands.clear()

    result_of(box.run("hello", **fields))

    ran = [timeless(command) for command in commands if command[1] in ("run", "exec", "rm")]
    assert ran == [timeless(command) for command in plan.commands]
    assert [command[1] for command in ran] == ["run"]
    assert "value-of-" not in str(commands)
    assert "value-of-" not in f"{plan} {plan.to_shell()}"


@ON_ROOTFUL
def test_execute_runs_what_plan_shows_for_a_container_that_is_kept(box: Box, commands: list[tuple[str, ...]]) -> None:
    plan = plan_of(box, ephemeral=False)
    commands.clear()

    result_of(box.run("hello", ephemeral=False))

    for container in box.containers():
        box.engine.remove(container)
    ran = [timeless(command) for command in commands if command[1] in ("ps", "run", "exec")]
    look, *others = map(timeless, plan.commands)
    assert [command for command in ran if command[1] != "ps"] == others
    assert any({*look} <= {*command} for command in ran[: ran.index(others[0])])


@ON_DOCKER
def test_plan_starts_nothing_and_makes_nothing(box: Box, commands: list[tuple[str, ...]]) -> None:
    box.runner().plan(box.options("hello"))

    assert commands == []
    assert [path.name for path in box.folder.iterdir()] == ["project"]


@ON_ROOTFUL
def test_the_commands_of_a_plan_work_in_a_shell(box: Box) -> None:
    box.run("hello")  # which makes the sessions folder
    plan = plan_of(box)

    with subprocess.Popen(
        ["sh", "-ec", plan.to_shell()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write(plan.stdin())  # and it stays open: it is the lease
        shell.stdin.flush()
        lines = []
        for line in shell.stdout:
            lines.append(line)
            if line.startswith(b"container-runner: ended "):
                shell.stdin.close()

    assert shell.returncode == 0
    assert f"container-runner: ended {plan.token} 0\n".encode() in lines
    assert any(b'"result":"hello"' in line for line in lines)
    assert box.containers() == []


async def test_a_runner_stands_wherever_a_runtime_can(box: Box, anyio_backend: str) -> None:
    runner = box.runner()
    assert isinstance(runner, Runtime)

    messages = [message async for message in runner.execute(box.options("hello"))]

    assert said(messages) == ["hello"]
    result_of(messages)
    assert box.containers() == []


@ON_DOCKER
def test_one_runner_serves_one_run_after_another(box: Box) -> None:
    runner = box.runner()

    told = [said(collect(runner, box.options(f"number {number}"))) for number in range(3)]

    assert told == [["number 0"], ["number 1"], ["number 2"]]


@ON_ROOTFUL
def test_a_session_is_resumed_under_its_id(box: Box) -> None:
    first = result_of(box.run("hello"))

    second = result_of(box.run("again", resume=first.session_id))

    assert first.session_id
    assert second.session_id == first.session_id


@ON_DOCKER
def test_arguments_of_the_agent_reach_it_in_one_piece(box: Box) -> None:
    words = ["", " ", "a b", "$HOME", "`id`", "'", '"', "\\", "*", "-x", "--", "é\n"]
    runtime = CommandRuntime(["printf", "<%s>\\n", *words])

    messages = box.run("go", runtime)

    assert error_of(messages) is None
    assert b"\n".join(lines_of(messages)).decode() == "\n".join(f"<{word}>" for word in words)
