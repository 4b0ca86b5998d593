"""What runs left is found, read and cleaned."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from container_runner.config.limits import RecordLimits
from container_runner.errors import AgentFailedError, ConfigError
from container_runner.records import records as records_module
from container_runner.records.records import Records, clean
from container_runner.records.summary import RunSummary
from tests.records.written import RESULT, files, recorder, take

# A process that dies

VICTIM = """
import os, sys, time
from pathlib import Path
from container_runner import Agent, ClaudeRuntime, ContainerConfig, ContainerRunner, ExecuteOptions, parse_line
from container_runner.config.limits import RecordLimits
from container_runner.records.recorder import Recorder
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
        json.dumps({"run_id": run_id, "agent": agent, "outcome": "succeeded", "started": started})
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


def test_the_records_are_never_too_much_for_long(state: Path) -> None:
    limits = RecordLimits(max_total=100_000)
    old = make_run(state, days=1, size=90_000)
    for _ in range(5):
        with recorder(state, limits=limits) as at_work:
            for _ in range(20):
                take(at_work, b'{"type":"user","text":"%s"}' % (b"x" * 9_000))
        runs = Records(state).runs()
        sizes = [path.stat().st_size for path in (state / "runs" / "bot").iterdir()]
        assert sum(sizes) <= limits.max_total
        assert runs[-1].summary.complete is False  # one alone is as long as all of them may be
        assert old not in left(state)


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


def test_who_looks_at_a_transcript_does_not_keep_its_writer_from_locking_it(tmp_path: Path) -> None:
    path = tmp_path / "transcript"
    path.touch()
    with path.open() as looking, path.open("a") as writing:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.02, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()

        records_module.lock(writing.fileno())

        with path.open() as another, pytest.raises(BlockingIOError):
            fcntl.flock(another, fcntl.LOCK_SH | fcntl.LOCK_NB)


@pytest.mark.parametrize(("word", "is_name"), [("bot", True), ("0badc0de", False)])
def test_who_names_an_agent_for_a_run_is_told_how(tmp_path: Path, word: str, is_name: bool) -> None:
    with pytest.raises(ConfigError) as caught:
        Records(tmp_path).find(word)

    assert ("--agent=NAME" in str(caught.value)) is is_name
