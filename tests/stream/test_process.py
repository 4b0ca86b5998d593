"""Processes: real small children, on both event loops."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import anyio
import anyio.abc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from container_runner.errors import EngineTimeoutError
from container_runner.stream import process as process_module
from container_runner.stream.command import run
from container_runner.stream.lines import OversizedLine
from container_runner.stream.process import STDERR_TAIL, Process

CAT = ["cat"]
SLEEP = ["sleep", "1000"]
MB = 1_000_000


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", code]


def open_fds() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def rest_of(process: Process, timeout: float = 30) -> list[bytes | OversizedLine]:
    lines: list[bytes | OversizedLine] = []
    while batch := await process.read(timeout):
        lines += batch
    return lines


async def end(process: Process) -> int:
    await process.terminate()
    process.close()
    return await process.wait()


# What comes out


async def test_stdout_stderr_and_the_exit_code_are_told_apart() -> None:
    done = await run(sh("echo out; echo err >&2; exit 7"), timeout=30)

    assert (done.stdout, done.stderr, done.returncode) == (b"out", "err\n", 7)


@pytest.mark.parametrize(
    ("printed", "lines"),
    [
        (r"", []),
        (r"\n", [b""]),
        (r"a\n\nb\n", [b"a", b"", b"b"]),
        (r"a\r\nb", [b"a", b"b"]),
        (r"no newline", [b"no newline"]),
        (r"\377\376\000\033\n", [b"\xff\xfe\x00\x1b"]),
    ],
)
async def test_any_output_comes_as_its_lines(printed: str, lines: list[bytes]) -> None:
    process = await Process.start(["printf", printed])

    assert await rest_of(process) == lines
    assert await process.wait() == 0
    process.close()


async def test_a_line_of_100_mb_comes_whole() -> None:
    process = await Process.start(sh("head -c 100000000 /dev/zero; echo"))

    (line,) = await rest_of(process)

    assert len(line) == 100 * MB  # type: ignore[arg-type]  # no line is oversized without a limit
    await process.wait()
    process.close()


async def test_a_line_over_the_limit_is_counted_and_the_next_one_is_whole() -> None:
    process = await Process.start(sh("head -c 10000000 /dev/zero; echo; echo next"), line_limit=1024)

    first, second = await rest_of(process)

    assert isinstance(first, OversizedLine)
    assert (first.size, second) == (10 * MB, b"next")
    await process.wait()
    process.close()


async def test_a_flood_on_stderr_does_not_stop_a_silent_stdout_and_its_end_is_kept() -> None:
    done = await run(sh("head -c 5000000 /dev/zero >&2; echo the end >&2; echo out"), timeout=30)

    assert done.stdout == b"out"
    assert done.stderr.endswith("the end\n")
    assert len(done.stderr) <= 2 * STDERR_TAIL


async def test_nothing_is_read_while_nobody_reads() -> None:
    process = await Process.start(python("import sys; [print('x' * 99) for _ in range(100000)]"))
    await anyio.sleep(0.2)
    assert process.returncode is None  # its pipe is full, and it waits

    assert len(await rest_of(process)) == 100_000
    assert await process.wait() == 0
    process.close()


@pytest.mark.parametrize("script", ["exit 3", "kill -TERM $$", "kill -KILL $$"])
async def test_the_exit_code(script: str) -> None:
    expected = {"exit 3": 3, "kill -TERM $$": -15, "kill -KILL $$": -9}[script]

    assert (await run(sh(script), timeout=30)).returncode == expected


async def test_a_program_that_is_not_there() -> None:
    before = open_fds()
    with pytest.raises(FileNotFoundError):
        await Process.start(["/nowhere/at/all"])
    assert open_fds() == before


async def test_the_environment_and_the_folder(tmp_path: Path) -> None:
    done = await run(["env"], env={"PATH": os.environ["PATH"], "A": "b"}, timeout=30)
    assert b"A=b" in done.stdout.split(b"\n")
    assert b"HOME=" not in done.stdout

    process = await Process.start(["pwd"], cwd=tmp_path)
    assert await rest_of(process) == [os.fsencode(tmp_path)]
    await end(process)


async def test_a_process_is_out_of_reach_of_the_terminals_interrupt() -> None:
    process = await Process.start(SLEEP)

    assert os.getsid(process.pid) == process.pid
    assert await end(process) == -signal.SIGTERM


# What goes in


async def test_a_stdin_larger_than_a_pipe_while_the_child_writes_as_much() -> None:
    given_ = b"x" * 3 * MB + b"\n"

    done = await run(CAT, stdin=given_, timeout=30)

    assert done.stdout + b"\n" == given_


async def test_a_child_that_does_not_read_its_stdin_is_no_error() -> None:
    done = await run(sh("exec <&-; sleep 0.1; echo done"), stdin=b"x" * MB, timeout=30)

    assert (done.stdout, done.returncode) == (b"done", 0)


async def test_stdin_ends_by_itself_or_is_held_until_it_is_closed() -> None:
    process = await Process.start(CAT, stdin=b"hello\n", hold_stdin=True)
    assert await process.read(30) == [b"hello"]
    with pytest.raises(TimeoutError):
        await process.read(0.1)

    process.close_stdin()
    process.close_stdin()

    assert await process.read(30) == []
    assert await process.wait() == 0
    process.close()


async def test_without_stdin_there_is_nothing_to_read() -> None:
    assert (await run(["wc", "-c"], timeout=30)).text.strip() == "0"


# Waiting


async def test_a_timeout_loses_nothing() -> None:
    process = await Process.start(sh("printf 'half a '; sleep 0.3; echo line; echo another"))

    with pytest.raises(TimeoutError):
        await process.read(0.05)
    assert await rest_of(process) == [b"half a line", b"another"]
    await end(process)


async def test_when_descriptors_run_out_there_is_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    started: list[object] = []
    monkeypatch.setattr("container_runner.stream.process.selectors.DefaultSelector", refuse)
    monkeypatch.setattr("container_runner.stream.process.open_process", started.append)

    with pytest.raises(OSError, match="Too many"):
        await Process.start(sh("sleep 1000"))
    assert not started


async def test_a_child_that_can_not_be_watched_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    before = open_fds()

    class Full(selectors.DefaultSelector):
        def register(self, *_: object) -> NoReturn:
            raise OSError(28, "No space left on device")

    async def start(*given: Any, **others: Any) -> anyio.abc.Process:
        child = await anyio.open_process(*given, **others)
        started.append(child.pid)
        return child

    monkeypatch.setattr("container_runner.stream.process.selectors.DefaultSelector", Full)
    monkeypatch.setattr("container_runner.stream.process.open_process", start)

    with pytest.raises(OSError, match="No space"):
        await Process.start(SLEEP, stdin=b"in", hold_stdin=True)
    assert started
    assert not is_alive(started[0])
    assert open_fds() == before


async def test_an_end_that_does_not_come_in_time() -> None:
    process = await Process.start(SLEEP)

    with pytest.raises(TimeoutError):
        await process.wait(0.05)
    await end(process)


async def test_a_cancelled_read_loses_nothing() -> None:
    process = await Process.start(
        python("import time\nfor n in range(100): print(n, flush=True); time.sleep(0.01)\nprint('x' * 200000)")
    )
    lines: list[bytes | OversizedLine] = []
    reads = 0
    while True:
        with anyio.move_on_after(0.002) as scope:
            batch = await process.read()
            lines += batch
            if not batch:
                break
        reads += scope.cancelled_caught

    assert lines == [*(str(n).encode() for n in range(100)), b"x" * 200_000]
    assert reads > 0  # it was really cancelled on the way
    await end(process)


async def test_a_read_that_is_cancelled_before_it_begins_takes_nothing() -> None:
    process = await Process.start(sh("echo one; echo two"))
    await process.wait()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await process.read()

    assert await rest_of(process) == [b"one", b"two"]
    process.close()


async def test_a_grandchild_that_holds_the_pipes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "EXIT_GRACE", 0.2)
    process = await Process.start(sh("sleep 1000 & echo $!; sleep 0.3"))
    (pid,) = await process.read(30)
    assert isinstance(pid, bytes)

    try:
        assert await rest_of(process, timeout=30) == []
        assert await process.wait() == 0
    finally:
        os.kill(int(pid), signal.SIGKILL)
        process.close()


async def test_a_process_that_ended_before_it_could_be_watched_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_late(pid: int) -> int:
        raise ProcessLookupError

    monkeypatch.setattr(process_module, "EXIT_GRACE", 0.2)
    monkeypatch.setattr(os, "pidfd_open", too_late, raising=False)
    process = await Process.start(sh("sleep 1000 & echo $!"))
    (pid,) = await process.read(30)
    assert isinstance(pid, bytes)

    try:
        assert await rest_of(process, timeout=2) == []
    finally:
        os.kill(int(pid), signal.SIGKILL)
        await end(process)


async def test_what_a_grandchild_writes_within_the_grace_is_kept() -> None:
    process = await Process.start(sh("(sleep 0.2; echo late) & echo early"))

    assert await rest_of(process) == [b"early", b"late"]
    await end(process)


# The gate

GATE = b"OPEN "


async def test_what_comes_before_the_gates_line_is_read_after_it() -> None:
    process = await Process.start(
        sh(
            "echo one; echo noise >&2; sleep 0.2; printf 'OPEN 4' >&2; sleep 0.1; echo '2 7' >&2;echo two; echo err >&2"
        ),
        gate=GATE,
    )

    assert await process.wait_for_gate(30)
    assert process.gate_line == b"OPEN 42 7"
    assert await rest_of(process) == [b"one", b"two"]
    assert bytes(process.stderr) == b"err\n"
    await end(process)


async def test_a_flood_on_stdout_that_overtakes_the_gates_line_is_taken_meanwhile() -> None:
    """An engine's client writes both; it is stuck with the line in its hands until somebody takes the flood."""
    process = await Process.start(
        sh(f"head -c {4 * MB} /dev/zero; echo; echo next; echo OPEN 1 >&2; sleep 0.2; echo last"), gate=GATE
    )

    assert await process.wait_for_gate(30)
    first, *others = await rest_of(process)
    assert isinstance(first, bytes)
    assert (len(first), others) == (4 * MB, [b"next", b"last"])
    await end(process)


async def test_a_flood_before_the_gates_line_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "EARLY_LIMIT", MB)
    written = 3 * MB
    process = await Process.start(
        sh(f"(sleep 0.5; echo OPEN 1 >&2) & head -c {written} /dev/zero | tr '\\000' '\\n'; wait"), gate=GATE
    )

    with pytest.raises(TimeoutError):
        await process.wait_for_gate(0.3)
    held = len(process._early)
    assert await process.wait_for_gate(30)
    assert MB <= held == len(process._early) <= MB + process_module.CHUNK
    assert await rest_of(process) == [b""] * written
    await end(process)


async def test_a_process_that_has_said_all_is_kept_until_its_reader_has_it_all() -> None:
    process = await Process.start(
        sh("echo one; printf '\\nEND 0\\n'; read -r nothing; echo let go >&2; exit 3"), hold_stdin=True, end=b"END "
    )
    lines = []
    while not process.has_said_all:
        lines += await process.read(30)
        await anyio.sleep(0.1)  # the reader is busy with them
        assert process.returncode is None

    assert await process.read(30) == []
    assert [line for line in lines if line] == [b"one"]
    assert await process.wait(30) == 3
    assert bytes(process.stderr) == b"let go\n"
    process.close()


async def test_the_last_line_alone_is_no_line_for_the_reader() -> None:
    process = await Process.start(sh("echo END 0; read -r nothing; exit 3"), hold_stdin=True, end=b"END ")

    assert await process.read(30) == []
    assert await process.wait(30) == 3  # because its stdin has ended
    process.close()


# A process that waits, and is given its work later

WAITS = sh("echo READY >&2; read -r size; echo OPEN $(head -c $size | wc -c) >&2; echo one; echo END 0; cat")


async def waiting(script: list[str] = WAITS) -> Process:
    process = await Process.start(script, hold_stdin=True, gate=b"READY")
    assert await process.wait_for_gate(30)
    return process


@pytest.mark.parametrize("size", [0, 5, 3 * MB], ids=["nothing", "little", "more than a pipe holds"])
async def test_what_is_sent_later_arrives_whole_and_opens_a_gate_of_its_own(size: int) -> None:
    process = await waiting()

    process.send(b"%d\n" % size + b"x" * size, gate=GATE, end=b"END ")

    assert process.gate_line is None  # the first gate's line is nobody's any more
    assert await process.wait_for_gate(30)
    assert process.gate_line == b"OPEN %d" % size
    assert await rest_of(process) == [b"one"]
    assert process.has_said_all
    assert await process.wait(30) == 0
    process.close()


async def test_what_is_sent_comes_with_its_own_limit_for_lines() -> None:
    process = await waiting(sh("echo READY >&2; read -r line; echo OPEN 1 >&2; echo $line; echo END"))

    process.send(b"x" * 99 + b"\n", gate=GATE, end=b"END", line_limit=50)

    assert await process.wait_for_gate(30)
    (line,) = await rest_of(process)
    assert isinstance(line, OversizedLine)
    assert line.size == 99
    await end(process)


async def test_a_process_that_ends_instead_of_taking_its_work_opens_no_gate() -> None:
    process = await waiting(sh("echo READY >&2; exec <&-; echo sorry >&2; exit 4"))
    await process.wait(30)

    process.send(b"x" * 3 * MB, gate=GATE, end=b"END")

    assert not await process.wait_for_gate(30)
    assert process.gate_line is None
    assert await rest_of(process) == []
    assert (bytes(process.stderr), await process.wait()) == (b"sorry\n", 4)
    process.close()


async def test_a_gate_that_never_opens_is_told_at_the_end_of_stderr() -> None:
    process = await Process.start(sh("echo why; echo because >&2; exit 125"), gate=GATE)

    assert not await process.wait_for_gate(30)
    assert process.gate_line is None
    assert await rest_of(process) == [b"why"]
    assert bytes(process.stderr) == b"because\n"
    assert await process.wait() == 125
    process.close()


async def test_a_gate_that_does_not_come_in_time() -> None:
    process = await Process.start(SLEEP, gate=GATE)

    with pytest.raises(TimeoutError):
        await process.wait_for_gate(0.1)
    await end(process)


async def test_a_gate_that_a_grandchild_keeps_shut_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "EXIT_GRACE", 0.2)
    process = await Process.start(
        sh("sleep 1000 >/dev/null & echo $! >pid; sleep 0.3; exit 1"), gate=GATE, cwd=tmp_path
    )

    assert not await process.wait_for_gate(30)
    assert await rest_of(process) == []
    assert await process.wait() == 1
    process.close()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


# The end


async def test_terminate_asks_first() -> None:
    process = await Process.start(sh("trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.05; done"))
    await process.read(30)

    await process.terminate()

    assert process.returncode == 5
    assert await rest_of(process) == [b"asked"]
    process.close()


async def test_terminate_kills_what_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "TERM_GRACE", 0.2)
    process = await Process.start(sh("trap '' TERM; echo ready; while :; do sleep 0.05; done"))
    await process.read(30)

    assert await end(process) == -signal.SIGKILL


async def test_a_signal_leaves_the_exit_code_to_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Popen looks whether the child has ended, and collects it: asyncio then says 255."""
    monkeypatch.setattr(subprocess.Popen, "send_signal", lambda *_: pytest.fail("it may have been collected"))
    process = await Process.start(sh("trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"))
    await process.read(30)

    await process.terminate()

    assert process.returncode == 7
    process.close()


async def test_terminate_after_the_end_does_nothing() -> None:
    process = await Process.start(["true"])
    await rest_of(process)
    assert await process.wait() == 0

    await process.terminate()
    assert process.returncode == 0
    process.close()
    process.close()


async def test_an_abandoned_process_leaves_neither_a_zombie_nor_a_descriptor() -> None:
    await run(["true"], timeout=30)  # what the event loop opens once is not ours
    before = open_fds()
    process = await Process.start(SLEEP, hold_stdin=True)

    await process.abandon()

    assert not is_alive(process.pid)
    assert open_fds() == before
    await process.abandon()


async def test_run_ends_a_command_that_takes_too_long_and_shows_what_it_said() -> None:
    with pytest.raises(EngineTimeoutError) as caught:
        await run(sh("echo stuck here >&2; exec sleep 1000"), timeout=0.3)

    assert "`sh -c` took longer than 0.3 seconds" in caught.value.message
    assert caught.value.stderr == "stuck here\n"


async def test_run_can_end_a_command_of_one_word() -> None:
    with pytest.raises(EngineTimeoutError):
        await run(["yes"], timeout=0.1)


async def test_run_counts_the_time_also_while_output_comes() -> None:
    started = time.monotonic()
    with pytest.raises(EngineTimeoutError):
        await run(["yes", "talking"], timeout=0.3)
    assert time.monotonic() - started < 20


async def test_run_keeps_what_fits_of_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container_runner.stream.command.OUTPUT_LIMIT", MB)

    done = await run(sh(f"yes | head -c {3 * MB}; head -c {3 * MB} /dev/zero; exit 3"), timeout=30)

    assert done.stdout == b"\n".join([b"y"] * (MB // 2))
    assert done.returncode == 3


async def test_a_cancelled_run_waits_for_the_commands_own_end(tmp_path: Path) -> None:
    script = (
        f"trap 'echo term >>{tmp_path}/log' TERM; echo start >>{tmp_path}/log; sleep 0.5; echo end >>{tmp_path}/log"
    )
    with anyio.move_on_after(0.2) as scope:
        await run(sh(script), timeout=30)

    assert scope.cancelled_caught
    assert (tmp_path / "log").read_text() == "start\nend\n"


async def test_a_cancelled_run_has_as_much_patience_as_it_is_told(tmp_path: Path) -> None:
    script = f"trap 'echo term >>{tmp_path}/log; exit' TERM; while :; do sleep 0.05; done"
    with anyio.move_on_after(0.2):
        await run(sh(script), timeout=30, patience=0.1)

    assert (tmp_path / "log").read_text() == "term\n"


async def test_a_cancelled_run_asks_before_it_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container_runner.stream.command.TERM_GRACE", 0.3)
    script = f"trap 'echo term >>{tmp_path}/log; exit' TERM; while :; do sleep 0.05; done"
    with anyio.move_on_after(0.2):
        await run(sh(script), timeout=30)

    assert (tmp_path / "log").read_text() == "term\n"


async def test_nothing_is_left_open_and_nobody_is_left_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "TERM_GRACE", 1.0)
    monkeypatch.setattr("container_runner.stream.command.TERM_GRACE", 1.0)
    await run(["true"], timeout=30)  # what the event loop opens once is not ours
    before = open_fds()

    for _ in range(3):
        await run(sh("echo out; echo err >&2"), timeout=30, stdin=b"in")
        with pytest.raises(EngineTimeoutError):
            await run(SLEEP, timeout=0.01)
        with anyio.move_on_after(0.01):
            await run(["sleep", "0.1"], timeout=30)
        process = await Process.start(SLEEP, hold_stdin=True, gate=GATE)
        pid = process.pid
        await end(process)
        assert not is_alive(pid)

    assert open_fds() == before


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=300_000), max_size=4))
def test_any_bytes_through_a_process_come_back_as_they_are(chunks: list[bytes]) -> None:
    given_ = b"".join(chunks)

    async def through() -> list[bytes | OversizedLine]:
        process = await Process.start(CAT, stdin=given_)
        try:
            return await rest_of(process)
        finally:
            await end(process)

    lines = given_.split(b"\n")
    expected = [line.removesuffix(b"\r") for line in (lines if lines[-1] else lines[:-1])]
    assert anyio.run(through) == expected
