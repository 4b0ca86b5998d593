"""The clocks of a run, and what an exit code means."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from container_runner.agents import CommandRuntime
from container_runner.errors import (
    AgentError,
    ContainerGoneError,
    ExecLostError,
    IdleTimeoutError,
    ResultTimeoutError,
    TotalTimeoutError,
)
from container_runner.options import Agent, ExecuteOptions
from container_runner.stream import process as process_module
from container_runner.stream import stream as stream_module
from container_runner.stream.decode import unmix
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import (
    CLASSES,
    ErrorMessage,
    Message,
    OutputLine,
    ResultMessage,
    SystemMessage,
    TaskNotificationMessage,
    TaskStartedMessage,
    UserMessage,
    parse_line,
)
from container_runner.stream.process import Process
from container_runner.stream.stream import MessageStream, killed
from container_runner.stream.work import MOST, Work

RESULT = '{"type": "result", "subtype": "success", "is_error": false, "result": "%s"}'
OK = RESULT % "ok"


def options(**clocks: float | None) -> ExecuteOptions:
    given: dict[str, Any] = {"idle_timeout": None, "result_timeout": None, **clocks}
    return ExecuteOptions(prompt="Hello", agent=Agent(name="bot"), **given)


class Reader:
    """A stream from a shell script, closed at the end of the block."""

    def __init__(self, script: str, options: ExecuteOptions, end: bytes | None = None, **others: object) -> None:
        self._script, self._options, self._end, self._others = script, options, end, others

    async def __aenter__(self) -> MessageStream:
        self._process = await Process.start(
            ["sh", "-c", self._script],
            hold_stdin=self._end is not None,
            end=self._end,
            line_limit=self._options.line_limit,
        )
        return MessageStream(self._process, self._options, **self._others)  # type: ignore[arg-type]  # the fields vary

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the shell's children as well
        with anyio.CancelScope(shield=True):
            await self._process.terminate()
        self._process.close()


async def all_of(stream: MessageStream) -> list[Message | OversizedLine]:
    messages: list[Message | OversizedLine] = []
    while batch := await stream.read():
        messages += batch
    return messages


# Messages


async def test_lines_become_messages_and_blank_ones_none() -> None:
    script = f"echo; echo '{{\"type\": \"system\"}}'; echo '  '; echo text; echo '{RESULT % 'ok'}'"
    async with Reader(script, options()) as stream:
        system, text, result = await all_of(stream)

        assert isinstance(system, SystemMessage)
        assert isinstance(text, OutputLine)
        assert isinstance(result, ResultMessage)
        assert stream.result is result


async def test_behind_the_line_that_says_that_the_agent_left_it_needs_no_time_to_leave() -> None:
    script = f"echo '{OK}'; echo 'left it 12'; sleep 0.5"
    async with Reader(script, options(result_timeout=0.1), left_line=b"left it") as stream:
        (result,) = await all_of(stream)

        assert isinstance(result, ResultMessage)


class Chunks:
    """A process that has said all at once."""

    has_said_all = False

    def __init__(self, *lines: bytes) -> None:
        self._lines = [*lines]

    async def read(self, timeout: float | None) -> list[bytes]:
        lines, self._lines = self._lines, []
        return lines


def numbered(count: int) -> list[bytes]:
    return [b'{"type": "user", "n": %d}' % number for number in range(count)]


def numbers(messages: list[Message]) -> list[int]:
    return [message.raw["n"] for message in messages if isinstance(message, UserMessage)]


async def test_many_lines_at_once_become_messages_by_portions() -> None:
    process: Any = Chunks(*numbered(50), *[b""] * 100, *numbered(50))
    recorded: list[Message] = []
    stream = MessageStream(process, options(), record=lambda _, messages: recorded.extend(messages))

    portions = []
    while batch := await stream.read():
        assert recorded[-len(batch) :] == batch
        portions.append(batch)

    assert all(len(batch) <= stream_module.PORTION for batch in portions)
    assert [number for batch in portions for number in numbers(batch)] == [*range(50), *range(50)]


async def test_a_runtime_with_messages_of_its_own_reads_each_line() -> None:
    class Shouting(CommandRuntime):
        def parse_line(self, line: bytes) -> Message | None:
            return OutputLine(line.upper())

    process: Any = Chunks(b'{"type": "user"}', b"text")
    stream = Shouting(["say"]).read(process, options())

    assert await stream.read() == [OutputLine(b'{"TYPE": "USER"}'), OutputLine(b"TEXT")]


async def test_what_was_not_asked_for_comes_before_what_is_read_later() -> None:
    process: Any = Chunks(*numbered(100))
    stream = MessageStream(process, options())

    first = await stream.read()
    rest = stream.parse([b'{"type": "user", "n": 100}'])

    assert numbers(first) + numbers(rest) == [*range(101)]
    assert not stream.parse([])
    assert not await stream.read()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        *((f"{noise}{OK}", ["result"]) for noise in (
            "\x1b]0;title\x07", "\x1b]0;title\x1b\\", "\x1b[?2004h", "\x1b[1;31m\x1b[K", "\x1b7\x1b(B",
            "\x1bPq\x1b\\", "\ufeff", "\0\0", "\r", "\b \x7f",
        )),
        (f"{OK}\x1b]0;x\x07", ["result"]),
        (f"\x1b[2K{OK}\x1b[0m", ["result"]),
        (f"10%\r100%\r{OK}", ["10%\r100%\r", "result"]),
        (f"npm WARN old {OK}", ["npm WARN old ", "result"]),
        (f"{OK}bye", ["result", "bye"]),
        (f'{{"type": "system"}}{OK}', ["system", "result"]),
        (f'a {{"type": "system"}} b {OK} c', ["a ", "system", " b ", "result", " c"]),
        (f'{{"type": "sys{OK}', ['{"type": "sys', "result"]),
        (f'{{"half {OK}', ['{"half ', "result"]),
        # Noise makes any object a message, words only one that an agent says.
        ('\x1b[K{"type": "thread.started"}', ["thread.started"]),
        ('\x1b[K{"no": "type"}', [""]),
        ('the schema is {"type": "object"}', ['the schema is {"type": "object"}']),
        ('it is {"a": 1}', ['it is {"a": 1}']),
        (f'it is {{"a": 1}}, {OK}', ['it is {"a": 1}, ', "result"]),
        ('she said "{\\"type\\": \\"result\\"}"', ['she said "{\\"type\\": \\"result\\"}"']),
        ('{"type": "result"', ['{"type": "result"']),
    ],
)  # fmt: skip
async def test_what_stands_beside_a_message_on_its_line_does_not_hide_it(line: str, shown: list[str]) -> None:
    process: Any = Chunks(line.encode())
    recorded: list[tuple[list[Any], list[Message]]] = []
    stream = MessageStream(process, options(), record=lambda lines, messages: recorded.append((lines, messages)))

    messages = await stream.read()

    assert [m.text if isinstance(m, OutputLine) else m.to_dict().get("type", "") for m in messages] == shown
    assert (stream.result is not None) == ("result" in shown)
    ((lines, known),) = recorded
    assert known == messages == [parse_line(part) for part in lines]


@pytest.mark.parametrize(
    "line",
    [
        b'{"' * 8_000_000,
        b'x {"a":' * 2_000_000,
        b'{"a": "' + b"x" * 16_000_000,
        b'x [' + b"[]," * 5_000_000 + OK.encode(),
        b'x {"a":' + b"[" * 5_000_000,
        b"\x1b]" * 5_000_000 + b'{"',
        b"\x1b[0m" * 3_000_000 + b'"' + OK.encode(),
        (b'x' + OK.encode()) * 20_000,
    ],
    ids=["openings", "deep", "text", "values", "brackets", "sequences", "noise", "results"],
)  # fmt: skip
def test_a_line_that_is_made_to_be_searched_for_long_is_not(line: bytes) -> None:
    began = time.process_time()
    parts = unmix(line, CLASSES)
    assert time.process_time() - began < 10
    assert b"".join(parts) in (line, b"", line[line.index(b'"') :])


READ_A_LINE = """
import re, sys, anyio
from container_runner.options import LINE_LIMIT, Agent, ExecuteOptions
from container_runner.stream.process import Process
from container_runner.stream.stream import MessageStream

peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

async def main():
    writes = "import sys; out = sys.stdout.buffer; out.write(%s); out.write(b'\\\\n')" % sys.argv[1]
    process = await Process.start([sys.executable, "-c", writes.replace("ALL", str(LINE_LIMIT - 100))], line_limit=LINE_LIMIT)
    stream = MessageStream(process, ExecuteOptions(prompt="", agent=Agent(name="a")))
    before = peak()
    while messages := await stream.read():
        assert [message.to_dict() for message in messages] and stream
    print((peak() - before) / LINE_LIMIT)

anyio.run(main)
"""  # noqa: E501  a script


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell")
@pytest.mark.parametrize(
    "line",
    [
        "b'{\"type\":\"user\",\"x\":[' + b'[],' * (ALL // 3) + b'0]}'",
        'b\'{"type":"user","x":"\' + b\'\\xff\' * (ALL - 20) + b\'"}\'',
        'b\'x {"type":"user","x":"\' + b\'x\' * (ALL - 20) + b\'"}\'',
    ],
    ids=["values", "no text", "beside a word"],
)
def test_the_longest_line_takes_no_more_memory_than_is_written_down(line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ_A_LINE, line], capture_output=True, text=True, check=True, timeout=60
    )

    assert 0.9 < float(done.stdout) < 16


async def test_the_last_result_counts() -> None:
    async with Reader(f"echo '{RESULT % 'one'}'; echo '{RESULT % 'two'}'", options()) as stream:
        await all_of(stream)

        assert stream.result is not None
        assert stream.result.result == "two"


async def test_a_line_over_the_limit_is_a_message_too() -> None:
    limited = ExecuteOptions(prompt="x", agent=Agent(name="bot"), line_limit=1024)
    async with Reader("head -c 5000 /dev/zero; echo; echo text", limited) as stream:
        oversized, text = await all_of(stream)

        assert isinstance(oversized, OversizedLine)
        assert isinstance(text, OutputLine)


# Clocks


@pytest.mark.parametrize(
    ("script", "clocks", "error"),
    [
        ("sleep 1000", {"timeout": 0.2}, TotalTimeoutError),
        ("sleep 1000", {"idle_timeout": 0.2}, IdleTimeoutError),
        (f"echo '{RESULT % 'ok'}'; sleep 1000", {"result_timeout": 0.2}, ResultTimeoutError),
        # The one that runs out first counts.
        ("sleep 1000", {"timeout": 0.2, "idle_timeout": 60}, TotalTimeoutError),
        ("sleep 1000", {"timeout": 60, "idle_timeout": 0.2}, IdleTimeoutError),
        (
            f"echo '{RESULT % 'ok'}'; sleep 1000",
            {"timeout": 60, "idle_timeout": 60, "result_timeout": 0.2},
            ResultTimeoutError,
        ),
        # A talkative agent is not idle, and its time runs out all the same.
        ("while :; do echo talk; sleep 0.01; done", {"timeout": 0.4, "idle_timeout": 0.3}, TotalTimeoutError),
        ("yes", {"timeout": 0.2}, TotalTimeoutError),
        # Without a result there is no waiting for its end.
        ("echo text; sleep 1000", {"timeout": 0.4, "result_timeout": 0.1}, TotalTimeoutError),
        # Half a line is no sign of life that anybody hears of.
        ("printf half; sleep 1000", {"idle_timeout": 0.2}, IdleTimeoutError),
    ],
)
async def test_a_clock_that_runs_out(script: str, clocks: dict[str, float], error: type[AgentError]) -> None:
    async with Reader(script, options(**clocks)) as stream:
        with pytest.raises(error):
            await all_of(stream)


INIT = '{"type": "system", "subtype": "init"}'
ANSWER = '{"type": "assistant", "message": {"content": []}}'
TASK = '{"type": "system", "subtype": "task_%s", "task_id": "t", "task_type": "%s", "status": "%s"}'
UPDATED = '{"type": "system", "subtype": "task_updated", "task_id": "t", "patch": {"status": "%s"}}'
HOOK = '{"type": "system", "subtype": "hook_%s", "hook_id": "h"}'
STARTED = TASK % ("started", "local_agent", "")


def work_of(*said: str) -> Work:
    """What is left to do after these lines, which came a second apart."""
    work = Work()
    for second, line in enumerate(said):
        work.take(parse_line(line.encode()) or OutputLine(b""), float(second))
    return work


@pytest.mark.parametrize(
    "said",
    [
        [],
        [INIT, ANSWER],
        # A turn that begins after a result, whatever its first line is.
        *([OK, line] for line in (INIT, ANSWER, '{"type": "user"}', '{"type": "tool_progress"}')),
        [OK, '{"type": "stream_event"}'],
        # What was begun before the result, or after it.
        [STARTED, OK],
        [OK, STARTED],
        [STARTED, UPDATED % "running", OK],
        [STARTED, OK, '{"type": "system", "subtype": "task_updated", "task_id": "t"}'],
        [STARTED, OK, '{"type": "system", "subtype": "task_notification", "task_id": "other"}'],
        [HOOK % "started", OK],
        [OK, HOOK % "started"],
        [STARTED, HOOK % "started", OK, HOOK % "response"],
        [TASK % ("started", "local_bash", ""), OK, INIT],
    ],
)
def test_work_goes_on_after_a_result(said: list[str]) -> None:
    assert work_of(*said).done_at is None


@pytest.mark.parametrize(
    ("said", "done_at"),
    [
        ([OK], 0),
        ([OK, INIT, ANSWER, OK], 3),
        ([OK, OK], 1),
        ([STARTED, OK, UPDATED % "completed"], 2),
        ([STARTED, OK, TASK % ("notification", "local_agent", "failed")], 2),
        ([HOOK % "started", OK, HOOK % "response"], 2),
        ([TASK % ("started", "local_bash", ""), OK, UPDATED % "running"], 1),
        ([OK, "text", '{"type": "keep_alive"}', '{"type": "system", "subtype": "status"}', "{}"], 0),
    ],
)
def test_nothing_is_left_to_do(said: list[str], done_at: float) -> None:
    assert work_of(*said).done_at == done_at


async def test_an_agent_that_is_at_work_after_its_result_has_time() -> None:
    heard: list[Message] = []

    async def listen() -> None:
        while True:
            heard.extend(await stream.read())

    script = f"printf '%s\\n' '{OK}' '{INIT}'; sleep 0.6; echo '{OK}'; sleep 1000"
    async with Reader(script, options(timeout=60, result_timeout=0.2)) as stream:
        with anyio.fail_after(20), pytest.raises(ResultTimeoutError):
            await listen()
    assert len(heard) == 3


def test_what_an_agent_says_it_began_is_kept_in_mind_within_a_bound() -> None:
    work = Work()
    for number in range(2 * MOST):
        work.take(TaskStartedMessage(task_id=str(number)), 0.0)
    work.take(ResultMessage(subtype="success"), 1.0)
    assert work.done_at is None
    for number in range(MOST):
        work.take(TaskNotificationMessage(task_id=str(number)), 2.0)
    assert work.done_at == 2.0


async def test_no_clock_runs_out_when_all_are_off_or_far_away() -> None:
    async with Reader(f"sleep 0.3; echo '{RESULT % 'ok'}'; sleep 0.3", options()) as stream:
        assert len(await all_of(stream)) == 1
    clocks = options(timeout=60, idle_timeout=60, result_timeout=60)
    async with Reader(f"sleep 0.1; echo '{RESULT % 'ok'}'", clocks) as stream:
        assert len(await all_of(stream)) == 1


async def test_what_was_said_before_a_clock_ran_out_was_heard() -> None:
    async with Reader("echo one; echo two; sleep 1000", options(timeout=0.4)) as stream:
        heard = [*await stream.read()]
        with contextlib.suppress(TotalTimeoutError):
            while True:
                heard += await stream.read()
        assert len(heard) == 2


# The look at a silent agent


async def test_a_silent_agent_is_looked_at_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "CHECK_INTERVAL", 0.05)
    looks = 0

    async def check() -> None:
        nonlocal looks
        looks += 1

    async with Reader("sleep 0.5; echo text", options(timeout=60), check=check) as stream:
        assert len(await all_of(stream)) == 1
    assert looks >= 2


async def test_what_the_look_finds_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(stream_module, "LAST_WAIT", 0.1)

    async def check() -> None:
        raise ContainerGoneError("gone")

    async with Reader("sleep 1000", options(), check=check) as stream:
        with pytest.raises(ContainerGoneError):
            await stream.read()


async def test_an_agent_that_ends_while_it_is_looked_after_has_not_lost_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "CHECK_INTERVAL", 0.05)

    async def check() -> None:
        (tmp_path / "go").touch()  # the agent, which has ended meanwhile
        raise ExecLostError("gone")

    said = f"until [ -e '{tmp_path}/go' ]; do sleep 0.01; done; sleep 0.2; echo last; echo words"
    async with Reader(said, options(), check=check) as stream:
        assert [message.to_dict()["text"] for message in await all_of(stream)] == ["last", "words"]
        assert await stream.wait() == 0


async def test_a_look_that_has_no_answer_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(stream_module, "CHECK_PATIENCE", 0.1)

    async with Reader("sleep 0.5; echo text", options(), check=anyio.sleep_forever) as stream:
        with anyio.fail_after(20):
            assert len(await all_of(stream)) == 1


async def test_a_clock_is_kept_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "CHECK_INTERVAL", 0.15)

    async with Reader("sleep 1000", options(idle_timeout=0.4)) as stream:
        with pytest.raises(IdleTimeoutError):
            await stream.read()


async def test_an_agent_that_waits_for_us_is_not_silent() -> None:
    answers = iter([True] * 6)

    async with Reader("sleep 1000", options(idle_timeout=0.1), is_owed=lambda: next(answers, False)) as stream:
        with anyio.fail_after(20), pytest.raises(IdleTimeoutError):
            await stream.read()

    assert list(answers) == []


async def test_a_clock_runs_also_during_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine may not answer."""
    monkeypatch.setattr(stream_module, "CHECK_INTERVAL", 0.05)

    async with Reader("sleep 1000", options(timeout=0.3), check=anyio.sleep_forever) as stream:
        with anyio.fail_after(20), pytest.raises(TotalTimeoutError):
            await stream.read()


@pytest.mark.parametrize("clock", ["idle_timeout", "result_timeout", "timeout"])
async def test_what_its_reader_does_with_the_messages_is_no_fault_of_the_agent(clock: str) -> None:
    async with Reader(f"echo '{RESULT % 'ok'}'", options(**{clock: 0.3})) as stream:
        assert len(await stream.read()) == 1
        await anyio.sleep(0.6)
        assert await stream.read() == []
        assert await stream.wait() == 0


async def test_an_agent_that_has_said_all_has_no_clock_but_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "END_PATIENCE", 1.0)
    limits = {"timeout": 3.0, "idle_timeout": 3.0, "result_timeout": 3.0, "grace": 0}
    said = f"printf '%s\\nEND\\n' '{RESULT % 'ok'}'; read -r nothing"

    async with Reader(f"{said}; sleep 0.7", options(**limits), end=b"END") as stream:
        assert len(await stream.read()) == 1
        await anyio.sleep(3.5)
        assert await stream.read() == []
        assert await stream.wait() == 0
    async with Reader(f"{said}; sleep 1000", options(**limits), end=b"END") as stream:
        assert len(await stream.read()) == 1
        with anyio.fail_after(20), pytest.raises(ExecLostError):
            await stream.read()


async def test_an_agent_that_talks_on_after_its_result_does_not_outlive_the_clock() -> None:
    async with Reader(f"echo '{RESULT % 'ok'}'; exec yes", options(result_timeout=0.3)) as stream:
        with anyio.fail_after(20), pytest.raises(ResultTimeoutError):
            await all_of(stream)


async def test_the_clocks_run_until_the_process_has_ended() -> None:
    async with Reader("exec >&- 2>&-; sleep 1000", options(timeout=0.3)) as stream:
        assert await stream.read() == []
        with anyio.fail_after(20), pytest.raises(TotalTimeoutError):
            await stream.wait()


async def test_the_total_clock_may_have_begun_before(monkeypatch: pytest.MonkeyPatch) -> None:
    began = anyio.current_time() - 1000

    async with Reader("sleep 1000", options(timeout=1000.0), started_at=began) as stream:
        with anyio.fail_after(20), pytest.raises(TotalTimeoutError):
            await stream.read()


# Exit codes


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGINT])
@pytest.mark.parametrize("shift", [-1, 1])
def test_an_exit_code_that_means_a_signal(number: signal.Signals, shift: int) -> None:
    error = killed(-number if shift < 0 else 128 + number, "said")

    assert error is not None
    assert (error.signal, error.stderr) == (number, "said")
    assert number.name in error.message


@pytest.mark.parametrize("code", [0, 1, 2, 64, 125, 126, 127, 128, 192, 200, 254, 255])
def test_an_exit_code_that_means_none(code: int) -> None:
    assert killed(code, "") is None


# On the host


async def on_host(script: str, **others: object) -> list[Message]:
    runtime = CommandRuntime(["sh", "-c", script])
    given = ExecuteOptions(prompt="the prompt", agent=Agent(name="bot"), **others)  # type: ignore[arg-type]  # the fields vary
    return [message async for message in runtime.execute(given)]


async def test_a_command_on_the_host_gets_its_prompt_and_says_its_lines() -> None:
    (line,) = await on_host("cat")

    assert isinstance(line, OutputLine)
    assert line.text == "the prompt"


@pytest.mark.parametrize(
    ("script", "kind", "exit_code"),
    [("echo why >&2; exit 3", "agent_failed", 3), ("kill -SEGV $$", "agent_killed", -11)],
)
async def test_a_command_that_fails_on_the_host(script: str, kind: str, exit_code: int) -> None:
    (error,) = await on_host(script)

    assert isinstance(error, ErrorMessage)
    assert (error.kind, error.exit_code) == (kind, exit_code)


def is_running(pid: int) -> bool:
    """Whether a process runs: an orphan that has ended stays a zombie until the system's PID 1 sees to it."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000 & echo $!; wait",
        "echo $$; exec >&- 2>&-; sleep 1000",
        "(trap '' TERM; echo $(exec sh -c 'echo $PPID'); while :; do sleep 0.05; done) & wait",
    ],
)
async def test_a_timeout_on_the_host_ends_the_whole_group(script: str) -> None:
    pid, error = await on_host(script, timeout=0.3, grace=1)

    assert isinstance(error, ErrorMessage)
    assert error.kind == "total_timeout"
    assert isinstance(pid, OutputLine)
    try:
        for _ in range(20):
            if not is_running(int(pid.text)):
                break
            await anyio.sleep(0.05)
        assert not is_running(int(pid.text))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid.text), signal.SIGKILL)


async def test_what_a_command_on_the_host_says_while_it_is_stopped_is_heard() -> None:
    script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done"

    ready, bye, error = await on_host(script, timeout=0.5, grace=5)

    assert [ready.to_dict()["text"], bye.to_dict()["text"]] == ["ready", "bye"]
    assert isinstance(error, ErrorMessage)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_command_on_the_host_is_ended_also_by_a_second_cancellation(anyio_backend: str) -> None:
    pids: list[int] = []

    async def consume() -> None:
        runtime = CommandRuntime(["sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.05; done"])
        given = ExecuteOptions(prompt="", agent=Agent(name="bot"), grace=1)
        async with contextlib.aclosing(runtime.execute(given)) as messages:
            async for message in messages:
                pids.append(int(message.to_dict()["text"]))

    task = asyncio.create_task(consume())
    while not pids:
        await asyncio.sleep(0.01)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.1)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_running(pids[0])


async def test_a_grandchild_that_floods_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "EXIT_GRACE", 0.2)

    long_line = "x" * 4_000  # what floods is bytes; a million lines would be this machine's speed

    with anyio.fail_after(60):
        *_, error = await on_host(f"setsid yes {long_line} & sleep 0.2; exit 3")

    assert isinstance(error, ErrorMessage)
    assert error.exit_code == 3


async def test_a_program_for_another_machine_on_the_host(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "program").chmod(0o755)
    given = ExecuteOptions(prompt="x", agent=Agent(name="bot"))

    (error,) = [message async for message in CommandRuntime([str(tmp_path / "program")]).execute(given)]

    assert isinstance(error, ErrorMessage)
    assert (error.kind, "format error" in error.message) == ("command_not_executable", True)


@pytest.mark.parametrize(
    ("program", "kind"), [("/nowhere/at/all", "command_not_found"), ("/etc", "command_not_executable")]
)
async def test_a_program_that_can_not_be_run_on_the_host(program: str, kind: str) -> None:
    given = ExecuteOptions(prompt="x", agent=Agent(name="bot"))

    (error,) = [message async for message in CommandRuntime([program]).execute(given)]

    assert isinstance(error, ErrorMessage)
    assert error.kind == kind
