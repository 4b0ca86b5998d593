"""The record of a run is whole, private, and never in the run's way."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import resource
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import attrs
import pytest
from pytest_subprocess import FakeProcess

from container_runner.agents import CommandRuntime
from container_runner.box.plan import Plan
from container_runner.config.limits import RecordLimits
from container_runner.errors import AgentFailedError
from container_runner.options import Agent
from container_runner.records.recorder import Recorder
from container_runner.runner.planning import make_plan
from container_runner.stream.lines import OversizedLine
from container_runner.stream.messages import Message, OutputLine, ResultMessage, parse_message
from container_runner.testing import FakeEngine
from tests.records.written import KEY, RESULT, all_of, files, lines, options, recorder, runner, said, summary, take


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
        "outcome": "succeeded", "kind": None, "exit_code": 0, "turns": 2, "cost_usd": 0.25, "complete": True,
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
    assert summary(state)["outcome"] == "succeeded"
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
    assert (summary(small_disk)["complete"], summary(small_disk)["outcome"]) == (False, "succeeded")
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


# What is not written


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


async def test_what_another_plan_than_the_first_has_is_in_no_record(
    fake_engine: FakeEngine, fp: FakeProcess, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def planned(*args: Any, **more: Any) -> Plan:
        made.append(f"t0ken-number-{len(made)}")
        plan = make_plan(*args, **more)
        return attrs.evolve(plan, hidden={**plan.hidden, "TOKEN": made[-1]})

    monkeypatch.setattr("container_runner.runner.runner.make_plan", planned)
    busy = "docker: Error response from daemon: context deadline exceeded"
    fp.register(["docker", "run", fp.any()], returncode=125, stderr=busy)
    fake_engine.messages([*(f"it is t0ken-number-{number}" for number in range(3)), RESULT])

    await all_of(runner(state))

    assert len(made) == 3  # the first one, one with our folders, and one for the second start
    written = b"".join(path.read_bytes() for path in (state / "runs" / "bot").iterdir()).decode()
    assert written.count("it is [TOKEN]") == 3
    assert "t0ken" not in written


async def test_what_is_in_a_mounted_login_file_is_in_no_record_and_no_error(
    fake_engine: FakeEngine, state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".claude").mkdir()
    login = tmp_path / ".claude/.credentials.json"
    login.write_text(json.dumps({"claudeAiOauth": {"accessToken": KEY, "expiresAt": 9e15}}))
    login.chmod(0o644)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    fake_engine.messages([f"it is {KEY}", {**RESULT, "is_error": True, "result": KEY}], exit_code=1, stderr=KEY)

    *_, error = await all_of(runner(state), options())

    written = b"".join(path.read_bytes() for path in (state / "runs" / "bot").iterdir()).decode()
    assert KEY not in written + repr(error) + error.to_json().decode()
    assert "[.credentials.json:claudeAiOauth.accessToken]" in written


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
