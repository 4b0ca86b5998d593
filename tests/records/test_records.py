"""What a run leaves to read: it is whole, private, without secrets, and never in the run's way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container_runner.agents import ClaudeRuntime, CommandRuntime
from container_runner.config.container import ContainerConfig, RecordLimits
from container_runner.errors import AgentFailedError, ConfigError
from container_runner.options import Agent, ExecuteOptions
from container_runner.records import records as records_module
from container_runner.records.records import Recorder, Records, RunSummary, Scrubber, clean
from container_runner.runner import ContainerRunner
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import Message, OutputLine, ResultMessage, parse_line, parse_message
from container_runner.testing import FakeEngine

KEY = "sk-ant-api03-abcdefghijklmnop"
RESULT = {
    "type": "result", "subtype": "success", "is_error": False, "result": "4", "num_turns": 2, "total_cost_usd": 0.25,
    "session_id": "0b7e3a52-0000-4000-8000-000000000000", "usage": {"input_tokens": 3, "output_tokens": 5},
}  # fmt: skip


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test depends on who runs it, or on what another one cleaned."""
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(records_module, "_cleaned", set())


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


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


def open_fds() -> int:
    return len(list(Path("/dev/fd").iterdir()))


# What is written


async def test_a_run_leaves_a_transcript_and_a_summary(fake_engine: FakeEngine, state: Path, tmp_path: Path) -> None:
    fake_engine.messages([{"type": "system", "subtype": "init", "session_id": "s-1", "model": "claude-x"}, RESULT])
    work = tmp_path / "work"
    work.mkdir()

    given_ = options(agent=Agent(name="bot", workspace=work))
    await all_of(runner(state, user="root", engine="docker"), given_)

    start, *rest = lines(state)
    found = summary(state)
    run_id = found["run_id"]
    assert {line["run"] for line in (start, *rest)} == {run_id}
    assert {line["agent"] for line in (start, *rest)} == {"bot"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in (start, *rest))
    assert (start["from"], start["message"]["type"], start["message"]["prompt"]) == ("runner", "start", "2 + 2?")
    assert [line["message"]["type"] for line in rest] == ["system", "result"]
    assert rest[1]["message"] == RESULT
    assert {name: found[name] for name in ("outcome", "kind", "exit_code", "turns", "cost_usd", "complete")} == {
        "outcome": "success", "kind": None, "exit_code": 0, "turns": 2, "cost_usd": 0.25, "complete": True,
    }  # fmt: skip
    assert found["tokens"]["total"] == 8
    assert found["session_id"] == RESULT["session_id"]
    assert found["model"] == "claude-x"
    assert (found["workspace"], found["image"], found["engine"]) == (str(work), "my/claude", "docker")
    assert f"--name={found['container']}" in fake_engine.run_argv
    assert found["started"] < found["ended"]
    assert found["duration"] > 0
    assert [path.stem for path in files(state, ".jsonl")] == [path.stem for path in files(state, ".json")]


async def test_only_the_caller_can_read_it(fake_engine: FakeEngine, state: Path) -> None:
    (state / "runs" / "bot").mkdir(parents=True)
    (state / "runs" / "bot").chmod(0o755)
    fake_engine.reply("4")
    old = os.umask(0)
    try:
        await all_of(runner(state))
    finally:
        os.umask(old)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (state / "runs").rglob("*")}
    assert modes.pop("bot") == 0o700
    assert stat.S_IMODE((state / "runs").stat().st_mode) == 0o700
    assert set(modes.values()) == {0o600}
    assert len(modes) == 2


async def test_the_agent_can_not_reach_it(fake_engine: FakeEngine, state: Path) -> None:
    fake_engine.reply("4")

    await all_of(runner(state))

    assert not any(str(state / "runs") in word for word in fake_engine.run_argv)
    assert not list((state / "sessions").rglob("*.json*"))


async def test_records_can_be_turned_off(fake_engine: FakeEngine, state: Path) -> None:
    fake_engine.reply("4")

    await all_of(runner(state, records=False))

    assert not (state / "runs").exists()


async def test_a_failed_run_says_why(fake_engine: FakeEngine, state: Path) -> None:
    fake_engine.messages([{"type": "system", "subtype": "init", "session_id": "s-1"}], exit_code=7, stderr="no disk\n")

    await all_of(runner(state))

    found = summary(state)
    assert (found["outcome"], found["kind"], found["exit_code"]) == ("failed", "agent_failed", 7)
    assert found["session_id"] == "s-1"
    (_, error) = said(state, "runner")
    assert (error["type"], error["kind"], error["exit_code"]) == ("error", "agent_failed", 7)
    assert "no disk" in error["stderr"]


async def test_a_run_without_an_engine_says_so(
    fake_engine: FakeEngine, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(errno.ENOENT, "No such file", "docker")

    monkeypatch.setattr("container_runner.stream.process.open_process", missing)

    await all_of(runner(state))

    assert (summary(state)["outcome"], summary(state)["kind"]) == ("failed", "engine_not_found")


async def test_a_run_whose_consumer_left_was_stopped(fake_engine: FakeEngine, state: Path) -> None:
    fake_engine.messages([{"type": "system", "subtype": "init", "session_id": "s-1"}], hang=True)

    async with aclosing(runner(state).execute(options(grace=1))) as messages:
        async for _ in messages:
            break

    found = summary(state)
    assert (found["outcome"], found["kind"], found["session_id"]) == ("stopped", None, "s-1")


async def test_what_a_consumer_that_left_did_not_ask_for_is_in_the_transcript(
    fake_engine: FakeEngine, state: Path
) -> None:
    fake_engine.messages([{"type": "user", "n": number} for number in range(100)])

    async with aclosing(runner(state).execute(options())) as messages:
        async for _ in messages:
            break

    assert [message["n"] for message in said(state)] == [*range(100)]


async def test_a_session_that_is_resumed_is_known_from_the_start(fake_engine: FakeEngine, state: Path) -> None:
    fake_engine.messages([], exit_code=1)

    await all_of(runner(state), options(resume="s-9"))

    assert summary(state)["session_id"] == "s-9"


def test_a_line_is_kept_byte_for_byte(state: Path) -> None:
    line = b'{ "type" : "assistant",\t"n": 1.50, "e": "\\u001b[0m \xc3\xa9" }'
    with recorder(state) as at_work:
        take(at_work, line, line)

    (path,) = files(state, ".jsonl")
    assert path.read_bytes().count(b'"message":' + line + b"}\n") == 2


@pytest.mark.parametrize(
    "line",
    [
        b"plain words",
        b'{"type": "assistant"',
        b'{"a":1},"from":"runner","message":{"type":"start"',
        b'{"type":"assistant","text":"\xff\xfe"}',
        b'{"type":"assistant","text":"\\ud83d"}',
        b'{"type":"assistant","text":"\\ud83d\\ude00"}',
        b'{"deep":' + 400 * b"[" + 400 * b"]" + b"}",
        b"[1, 2]",
        b"\x00\x1b[31m",
        OversizedLine(9_000_000, b"\xff{"),
    ],
)
def test_whatever_the_agent_says_is_one_line_of_json_that_can_not_speak_for_us(
    state: Path, line: bytes | OversizedLine
) -> None:
    good = b'{"type":"assistant"}'
    with recorder(state) as at_work:
        take(at_work, good, line, good)

    _, first, second, third = lines(state)
    assert [first["from"], second["from"], third["from"]] == ["agent"] * 3
    assert first["message"] == third["message"] == {"type": "assistant"}
    assert set(second) == {"time", "run", "agent", "from", "message"}


def test_a_runtime_with_messages_of_its_own_has_those_recorded(state: Path) -> None:
    plan = runner(state, engine="docker").plan(options())
    at_work = Recorder.start(plan, options(), RecordLimits(), as_read=False)
    at_work.record([b"4 it is"], [parse_message({"type": "assistant", "made": "of words"})])
    at_work.finish(None)

    assert said(state) == [{"type": "assistant", "made": "of words"}]


async def test_the_runner_knows_such_a_runtime(fake_engine: FakeEngine, state: Path) -> None:
    class Shouting(CommandRuntime):
        def parse_line(self, line: bytes) -> Message | None:
            return parse_message({"type": "assistant", "shout": line.decode().upper()})

    fake_engine.messages(["hello"])

    await all_of(runner(state, runtime=Shouting(["say"])))

    assert said(state) == [{"type": "assistant", "shout": "HELLO"}]


def test_a_batch_of_lines_is_one_write(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = os.write

    def counted(fd: int, data: bytes) -> int:
        sizes.append(len(data))
        return write(fd, data)

    with recorder(state) as at_work:
        monkeypatch.setattr(os, "write", counted)
        monkeypatch.setattr(os, "fsync", lambda fd: pytest.fail("a line must not wait for the disk"))
        take(at_work, *[b'{"type":"assistant"}'] * 1000)

    assert len([size for size in sizes if size > 1000]) == 1


# Secrets


def nested(text: str, times: int, **how: Any) -> str:
    """*text* as JSON in JSON has it."""
    for _ in range(times):
        text = json.dumps({"x": text}, **how)
    return text


HARD = 'p"a\\ss\nwört/<&>☃'
FORMS: dict[str, Callable[[str], bytes]] = {
    "as it is": lambda value: json.dumps({"text": value}, ensure_ascii=False).encode(),
    "escaped to ASCII": lambda value: json.dumps({"text": value}).encode(),
    "every character escaped": lambda value: (
        b'{"text":"' + "".join(f"\\u{ord(char):04x}" for char in value).encode() + b'"}'
    ),
    "every character escaped, capitals": lambda value: (
        b'{"text":"' + "".join(f"\\u{ord(char):04X}" for char in value).encode() + b'"}'
    ),
    "slashes escaped": lambda value: json.dumps({"text": value}).replace("/", "\\/").encode(),
    "as browsers like it": lambda value: (
        json.dumps({"text": value}).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()
    ),
    "in other words": lambda value: json.dumps({"text": f"it is {value}, he said"}).encode(),
    "as a key": lambda value: json.dumps({"env": {value: 1}}).encode(),
    "in a list": lambda value: json.dumps({"content": [[{"text": [value]}]]}).encode(),
    "JSON in JSON": lambda value: json.dumps({"text": nested(value, 1)}).encode(),
    "JSON in JSON, not ASCII": lambda value: json.dumps({"text": nested(value, 1, ensure_ascii=False)}).encode(),
    "JSON in JSON in JSON": lambda value: json.dumps({"text": nested(value, 2)}).encode(),
    "not JSON": lambda value: b"it is " + json.dumps(value).encode(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [KEY, HARD, "密码密码密码", "0123456789"], ids=["key", "hard", "unicode", "digits"])
def test_a_secret_is_in_no_transcript_however_it_is_spelled(
    state: Path, value: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", value)
    with recorder(state, secrets=("TOKEN",)) as at_work:
        take(at_work, b'{"type":"assistant"}', FORMS[form](value), b'{"type":"assistant"}')

    _, before, line, after = lines(state)
    shown = json.dumps(line, ensure_ascii=False)
    assert "[TOKEN]" in shown
    for escaped in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
        assert escaped not in shown
    assert before["message"] == after["message"] == {"type": "assistant"}


@given(
    value=st.text(st.characters(exclude_characters="[]Z\r\n", codec="utf-8"), min_size=4, max_size=30),
    ascii_only=st.booleans(),
    around=st.text(max_size=20),
)
@settings(deadline=None)
def test_no_text_survives_scrubbing(value: str, ascii_only: bool, around: str) -> None:
    scrubber = Scrubber({"Z": value})
    line = json.dumps({"text": f"{around}{value}{around}"}, ensure_ascii=ascii_only).encode("utf-8", "replace")

    assert scrubber.may_hold(line)
    assert value not in json.loads(scrubber.dump(json.loads(line)))["text"].replace("[Z]", "[")


async def test_secrets_are_scrubbed_of_all_that_a_run_leaves(
    fake_engine: FakeEngine, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("PIN", "4711")
    failed = {**RESULT, "is_error": True, "result": f"Bad key {KEY}"}
    fake_engine.messages(
        [{"type": "system", "session_id": "s", "env": {"k": KEY}}, f"PIN is 4711, {KEY}", failed],
        exit_code=1, stderr=f"rejected {KEY}\n",
    )  # fmt: skip

    given_ = options(f"use {KEY} and 4711 and host=db.example.org")
    await all_of(runner(state, secrets=("PIN",), env={"HOST": "db.example.org"}), given_)

    written = b"".join(path.read_bytes() for path in (state / "runs" / "bot").iterdir()).decode()
    assert "api03" not in written
    assert "db.example.org" not in written
    assert "4711" not in written
    assert "[ANTHROPIC_API_KEY]" in written
    assert summary(state)["message"] == "claude failed: Bad key [ANTHROPIC_API_KEY]"


def test_each_line_of_a_secret_of_many_lines_is_scrubbed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEM", "-----BEGIN KEY-----\nMIIEowIBAAKCAQEA0Z3VS5JJ\nshort\n-----END KEY-----\n")
    with recorder(state, secrets=("PEM",)) as at_work:
        take(at_work, json.dumps({"text": "  2\tMIIEowIBAAKCAQEA0Z3VS5JJ"}).encode())

    assert said(state) == [{"text": "  2\t[PEM]"}]


def test_an_open_variable_with_a_common_value_does_not_mangle_the_transcript(state: Path) -> None:
    line = b'{"type":"assistant","message":{"role":"assistant","ok":true,"text":"main is assistant"}}'
    with recorder(state, env={"A": "assistant", "B": "true", "C": "main"}) as at_work:
        take(at_work, line)

    expected = {"type": "assistant", "message": {"role": "assistant", "ok": True, "text": "main is [A]"}}
    assert said(state) == [expected]


# The disk


def occupied(tmp_path: Path) -> Path:
    """A state folder in which a file stands where the records should be."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "runs").write_text("mine")
    return tmp_path / "state"


async def test_a_full_disk_loses_no_message_and_the_summary_says_so(
    fake_engine: FakeEngine, state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel cuts a write short at a file's largest size, and then refuses, as it does when the disk is full."""
    fake_engine.messages([{"type": "assistant", "text": "x" * 1000}] * 300 + [RESULT])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        messages = await all_of(runner(state))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert len(messages) == 301
    assert isinstance(messages[-1], ResultMessage)
    assert summary(state)["complete"] is False
    assert summary(state)["outcome"] == "success"
    assert summary(state)["cost_usd"] == 0.25
    assert all(line["message"] for line in lines(state))
    assert [record.levelname for record in caplog.records if "incomplete" in record.message] == ["WARNING"]


@pytest.fixture
def small_disk(state: Path) -> Iterator[Path]:
    """The state folder, on a disk of its own of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    state.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "small", state], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.decode()}")
    yield state
    subprocess.run(["umount", "-l", state], check=True)


async def test_a_disk_that_is_really_full(small_disk: Path, fake_engine: FakeEngine) -> None:
    fake_engine.messages([{"type": "assistant", "text": "x" * 1000}] * 1000 + [RESULT])

    messages = await all_of(runner(small_disk))

    assert len(messages) == 1001
    assert (summary(small_disk)["complete"], summary(small_disk)["outcome"]) == (False, "success")
    assert len(lines(small_disk)) > 100


async def test_a_transcript_ends_at_its_limit(fake_engine: FakeEngine, state: Path) -> None:
    fake_engine.messages([{"type": "assistant", "text": "x" * 1000}] * 300 + [RESULT])

    messages = await all_of(runner(state, records=RecordLimits(max_run=50_000)))

    assert len(messages) == 301
    assert files(state, ".jsonl")[0].stat().st_size <= 50_000
    assert summary(state)["complete"] is False
    assert summary(state)["turns"] == 2


@pytest.mark.parametrize("place", ["runs", "runs/bot"])
async def test_a_symlink_in_the_state_folder_leads_nowhere(
    fake_engine: FakeEngine, state: Path, tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (state / place).parent.mkdir(parents=True)
    (state / place).symlink_to(elsewhere)
    fake_engine.reply("4")

    messages = await all_of(runner(state))

    assert isinstance(messages[-1], ResultMessage)
    assert list(elsewhere.iterdir()) == []
    assert "incomplete" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of somebody else's")
async def test_a_folder_of_somebody_else_is_not_used(fake_engine: FakeEngine, state: Path) -> None:
    (state / "runs").mkdir(parents=True)
    os.chown(state / "runs", 12345, 12345)
    fake_engine.reply("4")

    messages = await all_of(runner(state))

    assert isinstance(messages[-1], ResultMessage)
    assert list((state / "runs").iterdir()) == []


async def test_a_file_in_the_place_of_the_folder_is_no_harm(
    fake_engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake_engine.reply("4")

    messages = await all_of(runner(occupied(tmp_path)))

    assert isinstance(messages[-1], ResultMessage)
    assert "incomplete" in caplog.text


async def test_records_keep_no_descriptor(fake_engine: FakeEngine, state: Path) -> None:
    before = open_fds()
    for _ in range(3):
        fake_engine.reply("4")
        await all_of(runner(state))

    assert open_fds() <= before + 1  # the event loop's own may come


# A process that dies

VICTIM = """
import os, sys, time
from pathlib import Path
from container_runner import Agent, ClaudeRuntime, ContainerConfig, ContainerRunner, ExecuteOptions, parse_line
from container_runner.config.container import RecordLimits
from container_runner.records.records import Recorder
state = Path(sys.argv[1])
options = ExecuteOptions(prompt="2 + 2?", agent=Agent(name="bot"))
plan = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="my/claude", engine="docker"), state).plan(options)
recorder = Recorder.start(plan, options, RecordLimits())
line = b'{"type":"assistant","session_id":"s-1"}'
recorder.record([line, line], [parse_line(line), parse_line(line)])
os.write(recorder._fd, b'{"time":"2026-11-23T18:22:01.000Z","run":"torn')
print("ready", flush=True)
time.sleep(60)
"""


def test_a_run_goes_on_until_its_process_is_killed_and_then_was_interrupted(state: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", VICTIM, state], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        victim.stdout.readline()
        (running,) = Records(state).runs()
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    (dead,) = Records(state).runs("bot")

    assert running.summary.outcome == "running"
    assert dead.summary.outcome == "interrupted"
    assert (dead.summary.prompt, dead.summary.image) == ("2 + 2?", "my/claude")
    assert dead.summary.run_id == running.run_id
    assert clean(state, RecordLimits(max_age=1e-9)) == 1
    assert list((state / "runs" / "bot").iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"{}", b'{"outcome": "won"}', b"\xff", b'{"run_id": 1, "agent": "x", "started": "yesterday"}'],
)
def test_a_summary_that_can_not_be_read_is_as_none(state: Path, text: bytes) -> None:
    with recorder(state):
        pass
    (path,) = files(state, ".json")
    path.write_bytes(text)

    (found,) = Records(state).runs()

    assert found.summary.outcome == "interrupted"
    assert found.summary.prompt == "2 + 2?"


def test_a_transcript_that_is_empty_still_is_a_run(state: Path) -> None:
    with recorder(state):
        pass
    files(state, ".json")[0].unlink()
    os.truncate(files(state, ".jsonl")[0], 0)

    (found,) = Records(state).runs()

    assert (found.agent, found.summary.outcome, len(found.run_id)) == ("bot", "interrupted", 32)


def test_a_summary_comes_back_as_it_was(state: Path) -> None:
    with recorder(state) as at_work:
        take(at_work, json.dumps(RESULT).encode())
        kept = at_work.finish(AgentFailedError("It failed.", exit_code=3))

    assert RunSummary.from_dict(json.loads(json.dumps(kept.to_dict()))).to_dict() == kept.to_dict()
    assert Records(state).runs()[0].summary.to_dict() == kept.to_dict()


# Finding and cleaning


def make_run(state: Path, *, days: float, size: int = 0, agent: str = "bot", run_id: str = "") -> str:
    """Files as a run left them some days ago; their common name."""
    moment = time.gmtime(time.time() - days * 86400)
    run_id = run_id or os.urandom(16).hex()
    stem = f"{time.strftime('%Y%m%dT%H%M%S', moment)}.000Z-{run_id}"
    folder = state / "runs" / agent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.jsonl").write_bytes(b"x" * size)
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)
    (folder / f"{stem}.json").write_text(
        json.dumps({"run_id": run_id, "agent": agent, "outcome": "success", "started": started})
    )
    return stem


def left(state: Path) -> set[str]:
    return {run.name for run in Records(state).runs()}


def test_old_records_go_and_young_ones_stay(state: Path) -> None:
    make_run(state, days=31)
    make_run(state, days=400, agent="other")
    young = make_run(state, days=29)

    assert clean(state, RecordLimits()) == 2
    assert left(state) == {young}


def test_the_oldest_go_first_when_there_is_too_much(state: Path) -> None:
    make_run(state, days=3, size=5000)
    middle = make_run(state, days=2, size=5000, agent="other")
    newest = make_run(state, days=1, size=5000)

    assert clean(state, RecordLimits(max_total=12_000)) == 1
    assert left(state) == {middle, newest}


def test_the_record_of_a_run_that_goes_on_stays(state: Path) -> None:
    with recorder(state):
        assert clean(state, RecordLimits(max_age=1e-9, max_total=1)) == 0
        assert len(left(state)) == 1


def test_cleaning_touches_only_what_is_ours(state: Path, tmp_path: Path) -> None:
    stem = make_run(state, days=99)
    folder = state / "runs" / "bot"
    (folder / "notes.json").write_text("mine")
    (folder / f"{stem}.txt").write_text("mine")
    (state / "runs" / "linked").symlink_to(tmp_path)

    clean(state, RecordLimits())

    assert sorted(path.name for path in folder.iterdir()) == sorted(["notes.json", f"{stem}.txt"])
    assert (state / "runs" / "linked").is_symlink()


def test_cleaning_takes_no_more_time_than_it_may(state: Path) -> None:
    make_run(state, days=99)

    assert clean(state, RecordLimits(), seconds=0) == 0
    assert len(left(state)) == 1


def test_a_process_cleans_a_folder_once(state: Path) -> None:
    make_run(state, days=99)
    with recorder(state):
        pass
    old = make_run(state, days=99)
    with recorder(state):
        pass

    assert old in left(state)
    assert len(left(state)) == 3


def test_a_run_is_found_by_the_beginning_of_its_id(state: Path) -> None:
    make_run(state, days=1, run_id="ab" * 16)
    make_run(state, days=1, run_id="ac" * 16, agent="other")
    records = Records(state)

    assert records.find("ab").run_id == "ab" * 16
    assert records.find("a", "other").agent == "other"
    for wrong in ("", "a", "ff", "../x"):
        with pytest.raises(ConfigError, match="run"):
            records.find(wrong)


@pytest.mark.parametrize("name", ["..", ".", "../bot", "a/b", "", "nobody"])
def test_no_name_leads_out_of_the_records(state: Path, name: str) -> None:
    make_run(state, days=1)

    assert [run.agent for run in Records(state).runs(name or "..")] == []


@pytest.mark.parametrize("field", ["max_age", "max_total", "max_run"])
@pytest.mark.parametrize("value", [0, -1, True, "lots", "", None, float("nan")])
def test_a_limit_is_a_number_over_0(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"records_{field}"):
        RecordLimits(**{field: value})


def test_a_limit_can_be_text_as_in_a_configuration_file() -> None:
    limits = RecordLimits(max_age="7d", max_total="1.5g", max_run="64m")

    assert limits == RecordLimits(max_age=7 * 86400, max_total=3 * 2**29, max_run=64 * 2**20)


def test_output_lines_and_oversized_ones_come_back_as_they_were(state: Path) -> None:
    from container_runner.records.transcript import parse_record

    with recorder(state) as at_work:
        take(at_work, b"plain \xff words", OversizedLine(123, b"{..."))

    (path,) = files(state, ".jsonl")
    _, first, second = [parse_record(line) for line in path.read_bytes().splitlines()]
    assert first is not None
    assert second is not None
    assert isinstance(first.message, OutputLine)
    assert first.message.text == "plain \N{REPLACEMENT CHARACTER} words"
    assert second.message == OversizedLine(123, b"{...")


def test_the_log_tells_of_a_run_and_of_no_secret(
    state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TOKEN", KEY)
    caplog.set_level(logging.DEBUG, "container_runner")
    with recorder(state, secrets=("TOKEN",)) as at_work:
        at_work.in_container("box-1")
        at_work.stopped("term")
        summary_ = at_work.finish(AgentFailedError(f"It failed with {KEY}", exit_code=2))

    ended = next(record for record in caplog.records if "ended" in record.message)
    assert (vars(ended)["run_id"], vars(ended)["kind"], vars(ended)["agent"]) == (
        summary_.run_id, "agent_failed", "bot",
    )  # fmt: skip
    assert [vars(record)["rung"] for record in caplog.records if hasattr(record, "rung")] == ["term"]
    assert not any(KEY in str(vars(record)) for record in caplog.records)


def test_who_looks_at_a_transcript_does_not_keep_its_writer_from_locking_it(tmp_path: Path) -> None:
    path = tmp_path / "transcript"
    path.touch()
    with path.open() as looking, path.open("a") as writing:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.02, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()

        records_module._lock(writing.fileno())

        with path.open() as another, pytest.raises(BlockingIOError):
            fcntl.flock(another, fcntl.LOCK_SH | fcntl.LOCK_NB)
