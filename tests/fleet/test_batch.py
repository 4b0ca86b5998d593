"""Many requests through one engine: order, failures, results that outlive a crash."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from container_runner.agents import ClaudeRuntime
from container_runner.config.container import ContainerConfig
from container_runner.errors import ConfigError, EngineNotFoundError, StateError
from container_runner.fleet import batch
from container_runner.fleet.batch import Watch, run_batch
from container_runner.fleet.job import Job, JobResult
from container_runner.fleet.node import Here
from container_runner.fleet.results import ResultFile
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import Message
from container_runner.testing import FakeEngine


@pytest.fixture
def runner(tmp_path: Path) -> ContainerRunner:
    config = ContainerConfig(image="some/image", credentials="none")
    return ContainerRunner(ClaudeRuntime(), config, tmp_path / "state")


def job(runner: ContainerRunner, id_: str, prompt: str = "Do it.", **fields: Any) -> Job:
    agent = {name: fields.pop(name) for name in ("model", "workspace") if name in fields}
    return Job(id=id_, runner=runner, options=ExecuteOptions(prompt=prompt, agent=Agent(name="a", **agent), **fields))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_results_come_in_the_order_of_the_jobs(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    for text in ("one", "two", "three"):
        fake_engine.reply(text, session_id=f"session-{text}")

    results = await run_batch([job(runner, str(number)) for number in range(3)], at_once=1)

    assert [(result.id, result.result, result.session_id) for result in results] == [
        ("0", "one", "session-one"),
        ("1", "two", "session-two"),
        ("2", "three", "session-three"),
    ]
    assert all(result.succeeded and result.exit_code == 0 and result.duration > 0 for result in results)


async def test_an_answer_in_a_shape_is_kept(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.reply("It is 4.", structured_output={"sum": 4})

    (result,) = await run_batch([job(runner, "1", json_schema={"type": "object"})])

    assert result.structured_output == {"sum": 4}
    assert JobResult.parse(result.to_json()) == result
    assert '--json-schema={"type": "object"}' in fake_engine.agent_argv


async def test_no_more_run_at_a_time_than_allowed(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    for _ in range(7):
        fake_engine.reply("done")
    at_work: set[str] = set()
    most = 0

    def started(job: Job) -> None:
        nonlocal most
        at_work.add(job.id)
        most = max(most, len(at_work))

    watch = Watch(started=started, ended=lambda job, _: at_work.remove(job.id))
    await run_batch([job(runner, str(number)) for number in range(7)], at_once=3, watch=watch)

    assert most == 3
    assert not at_work


async def test_a_job_that_fails_does_not_stop_the_rest(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.messages([], exit_code=3, stderr="no luck")
    fake_engine.reply("fine")

    bad, good = await run_batch([job(runner, "bad"), job(runner, "good")], at_once=1)

    assert (bad.outcome, bad.kind, bad.exit_code) == ("failed", "agent_failed", 3)
    assert bad.message
    assert good.succeeded


async def test_the_engine_is_asked_once(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    for _ in range(4):
        fake_engine.reply("done")

    await run_batch([job(runner, str(number)) for number in range(4)], at_once=4)

    assert sum(call.argv[1] == "--version" for call in fake_engine.calls) == 1


async def test_a_result_is_in_the_file_when_its_job_has_ended(
    fake_engine: FakeEngine, runner: ContainerRunner, tmp_path: Path
) -> None:
    for text in ("one", "two"):
        fake_engine.reply(text)
    path, seen = tmp_path / "results.jsonl", list[int]()

    with ResultFile(path) as results:
        watch = Watch(ended=lambda *_: seen.append(len(rows(path))))
        await run_batch([job(runner, "1"), job(runner, "2")], at_once=1, results=results, watch=watch)

    assert seen == [1, 2]
    assert path.stat().st_mode & 0o777 == 0o600
    assert rows(path)[0] | {"started": "", "duration": 0, "digest": "", "run": ""} == {
        "id": "1",
        "digest": "",
        "outcome": "succeeded",
        "kind": None,
        "message": None,
        "exit_code": 0,
        "session_id": "11111111-2222-4333-8444-555555555555",
        "turns": 1,
        "tokens": None,
        "cost_usd": None,
        "started": "",
        "duration": 0,
        "result": "one",
        "structured_output": None,
        "denied": [],
        "attempts": 1,
        "stderr": "",
        "run": "",
        "branch": None,
        "files": 0,
        "findings": [],
        "node": "",
    }


async def test_a_check_decides_how_a_job_went_and_its_words_are_kept(
    fake_engine: FakeEngine, runner: ContainerRunner, tmp_path: Path
) -> None:
    fake_engine.reply("fine")
    fake_engine.fail("check_failed")
    fake_engine.fail("setup_failed")
    jobs = [job(runner, name, setup="true", check="make test") for name in ("good", "bad", "unready")]

    with ResultFile(tmp_path / "results") as results:
        good, bad, unready = await run_batch(jobs, at_once=1, results=results, retries=3)

    assert good.succeeded
    assert (bad.kind, bad.exit_code, bad.stderr) == ("check_failed", 1, "1 failed\n")
    assert unready.kind == "setup_failed"
    # What a check says is a result, and no outage: another try would be another agent's work.
    assert (bad.attempts, bad.was_run, unready.was_run) == (1, True, True)


async def test_what_is_finished_is_not_run_again(
    fake_engine: FakeEngine, runner: ContainerRunner, tmp_path: Path
) -> None:
    fake_engine.strict = True
    fake_engine.reply("one")
    fake_engine.messages([], exit_code=1)
    jobs = [job(runner, "good"), job(runner, "bad")]

    for _ in range(2):
        with ResultFile(tmp_path / "results") as results:
            first, second = await run_batch(jobs, at_once=1, results=results)
        assert (first.result, second.kind) == ("one", "agent_failed")

    assert len(rows(tmp_path / "results")) == 2


async def test_what_failed_can_be_tried_again_and_its_last_line_counts(
    fake_engine: FakeEngine, runner: ContainerRunner, tmp_path: Path
) -> None:
    fake_engine.messages([], exit_code=1)
    fake_engine.reply("at last")
    said = []

    for retry in (False, False, True, True):
        with ResultFile(tmp_path / "results") as results:
            said += await run_batch([job(runner, "1")], results=results, retry_failed=retry)

    assert [result.result for result in said] == ["", "", "at last", "at last"]
    assert [row["outcome"] for row in rows(tmp_path / "results")] == ["failed", "succeeded"]


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({"prompt": "Do more."}, True),
        ({"model": "opus"}, True),
        ({"workspace": "/elsewhere"}, True),
        ({"resume": "abc"}, True),
        ({"json_schema": {"type": "object"}}, True),
        ({"check": "make test"}, True),
        ({"setup": "npm ci"}, True),
        ({"max_budget_usd": 5}, False),
        ({"timeout": 5.0}, False),
        ({"include_partial_messages": True}, False),
        ({}, False),
    ],
)
def test_a_job_that_asks_for_something_else_is_another_job(
    runner: ContainerRunner, changed: dict[str, Any], again: bool
) -> None:
    before, after = job(runner, "1", workspace="/work"), job(runner, "1", **{"workspace": "/work", **changed})

    assert (before.digest != after.digest) is again


def result_of(job: Job, **fields: Any) -> JobResult:
    blank: dict[str, Any] = {"kind": None, "message": None, "exit_code": 0, "session_id": None, "turns": 1, "tokens": 2}
    blank |= {"cost_usd": 0.5, "started": "2026-01-01T00:00:00+00:00", "duration": 1.5, "result": "ünï", "id": job.id}
    return JobResult(**{**blank, "digest": job.digest, "outcome": "succeeded", **fields})


def test_a_line_that_a_crash_cut_off_is_taken_away(runner: ContainerRunner, tmp_path: Path) -> None:
    one, two = job(runner, "1"), job(runner, "2")
    whole, cut = result_of(one).to_json() + b"\n", result_of(two).to_json()
    for size in range(1, len(cut)):
        path = tmp_path / "results"
        path.write_bytes(whole + cut[:size])

        with ResultFile(path) as results:
            assert results.result_of(one) == result_of(one)
            assert results.result_of(two) is None
            results.add(result_of(two))

        assert path.read_bytes() == whole + cut + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        b"my important notes",
        b"my important notes\n",
        b'{"id": 1}\n',
        b'["id"]\n',
        b"\n",
        b'{"id":"1","digest":"2","outcome":"maybe"}\n',
        b"\xff\xfe",
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match="results"), ResultFile(path):
        pass

    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "field", [field.name for field in attrs.fields(JobResult) if field.name != "structured_output"]
)
def test_a_line_with_a_field_of_another_type_is_no_result(runner: ContainerRunner, field: str) -> None:
    raw = json.loads(result_of(job(runner, "1")).to_json()) | {field: {"x": 1}}

    with pytest.raises(ValueError, match="no result"):
        JobResult.parse(json.dumps(raw).encode())


def test_a_field_that_we_do_not_know_is_no_harm(runner: ContainerRunner) -> None:
    result = result_of(job(runner, "1"))
    raw = json.loads(result.to_json()) | {"new": 1}

    assert JobResult.parse(json.dumps(raw).encode()) == result


def test_two_batches_can_not_write_to_one_file(tmp_path: Path) -> None:
    with (
        ResultFile(tmp_path / "results"),
        pytest.raises(StateError, match="another batch"),
        ResultFile(tmp_path / "results"),
    ):
        pass
    with ResultFile(tmp_path / "results"):
        pass


def test_a_symlink_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")

    with pytest.raises(StateError), ResultFile(tmp_path / "link"):
        pass

    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "results"
    path.mkdir() if kind == "folder" else os.mkfifo(path)

    with pytest.raises(StateError), ResultFile(path):
        pass


async def test_a_full_disk_ends_the_batch(
    fake_engine: FakeEngine, runner: ContainerRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_engine.reply("one")
    fake_engine.messages([], hang=True)

    def full(*_: object) -> None:
        raise StateError("The disk is full.")

    monkeypatch.setattr(ResultFile, "add", full)
    with ResultFile(tmp_path / "results") as results, pytest.raises(StateError, match="full"):
        await run_batch([job(runner, "1"), job(runner, "2")], at_once=2, results=results)

    assert all(call.returncode is not None for call in fake_engine.calls)


async def test_a_batch_that_is_cancelled_stops_its_agents_and_writes_no_result_for_them(
    fake_engine: FakeEngine, runner: ContainerRunner, tmp_path: Path
) -> None:
    fake_engine.reply("one")
    fake_engine.messages([{"type": "system", "subtype": "init"}], hang=True)
    fake_engine.messages([{"type": "system", "subtype": "init"}], hang=True)
    started = list[str]()

    with ResultFile(tmp_path / "results") as results, anyio.CancelScope() as scope:

        def said(job: Job, _: object) -> None:
            started.append(job.id)
            if {"2", "3"} <= {*started}:
                scope.cancel()

        jobs = [job(runner, str(number)) for number in range(1, 5)]
        await run_batch(jobs, at_once=2, results=results, watch=Watch(said=said))

    assert scope.cancelled_caught
    assert len(rows(tmp_path / "results")) == 1
    assert all(call.returncode is not None for call in fake_engine.calls)
    assert [call.returncode for call in fake_engine.calls if call.argv[1] == "run"] == [0, 0, 0]


async def test_nothing_is_started_if_a_job_can_not_be_carried_out(
    fake_engine: FakeEngine, runner: ContainerRunner
) -> None:
    jobs = [job(runner, "fine"), job(runner, "lost", workspace="/no/such/folder")]

    with pytest.raises(ConfigError, match=r"job lost: agent\.workspace"):
        await run_batch(jobs)

    assert fake_engine.calls == []


async def test_no_engine_ends_the_batch_before_it_begins(tmp_path: Path) -> None:
    config = ContainerConfig(image="some/image", engine="/no/such/engine")
    runner = ContainerRunner(ClaudeRuntime(), config, tmp_path)

    with pytest.raises(EngineNotFoundError):
        await run_batch([job(runner, "1")])


async def test_two_jobs_of_one_name_are_refused(runner: ContainerRunner) -> None:
    with pytest.raises(ConfigError, match="id 'x' is another job's already"):
        await run_batch([job(runner, "x"), job(runner, "x", "Something else.")])


@pytest.mark.parametrize("at_once", [0, -1, 1001])
async def test_some_have_to_run_at_a_time(runner: ContainerRunner, at_once: int) -> None:
    with pytest.raises(ConfigError, match="jobs"):
        await run_batch([job(runner, "x")], at_once=at_once)


@pytest.mark.parametrize("id_", ["", "two\nlines", "x" * 201, 7, None, "\x1b[2J"])
def test_an_id_is_one_line(runner: ContainerRunner, id_: Any) -> None:
    with pytest.raises(ConfigError, match="id"):
        job(runner, id_)


async def test_an_empty_batch_is_done(runner: ContainerRunner) -> None:
    assert await run_batch([]) == []


async def test_a_workspace_that_goes_away_fails_its_job_alone(
    fake_engine: FakeEngine, runner: ContainerRunner, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, 1000, 1000)
    fake_engine.reply("one")
    fake_engine.reply("three")
    jobs = [job(runner, "1"), job(runner, "2", workspace=folder), job(runner, "3")]

    watch = Watch(ended=lambda job, _: folder.rmdir() if job.id == "1" else None)
    results = await run_batch(jobs, at_once=1, watch=watch)

    assert [result.kind for result in results] == [None, "config", None]


async def test_a_failure_that_is_none_of_ours_ends_its_job_alone(
    fake_engine: FakeEngine, runner: ContainerRunner
) -> None:
    for text in ("one", "two", "three"):
        fake_engine.reply(text)

    class Broken(Here):
        async def run(self, job: Job, **calls: Any) -> AsyncGenerator[Sequence[Message]]:
            async with aclosing(super().run(job, **calls)) as messages:
                async for some in messages:
                    yield some
                    if job.id == "2":
                        raise ValueError("embedded null byte")

    results = await run_batch([job(runner, str(number)) for number in (1, 2, 3)], at_once=2, on=Broken())

    assert [result.kind for result in results] == [None, "agent", None]
    assert "embedded null byte" in (results[1].message or "")


# What never ran, what may pass, and what it may cost


@pytest.mark.parametrize("kind", ["engine", "engine_unreachable", "image_not_found", "pull_failed", "mount"])
async def test_a_job_whose_agent_never_started_is_not_finished(
    fake_engine: FakeEngine, runner: ContainerRunner, tmp_path: Path, kind: str
) -> None:
    fake_engine.fail(kind)
    fake_engine.reply("there it is")
    said = []

    for _ in range(3):
        with ResultFile(tmp_path / "results") as results:
            said += await run_batch([job(runner, "1")], results=results)

    assert [(result.kind, result.result) for result in said] == [
        (kind, ""),
        (None, "there it is"),
        (None, "there it is"),
    ]
    assert len(rows(tmp_path / "results")) == 2


@pytest.mark.parametrize(("kind", "ended"), [("container_gone", True), ("agent_failed", True), ("state", False)])
def test_a_job_whose_agent_was_at_work_is_finished(runner: ContainerRunner, kind: str, ended: bool) -> None:
    assert result_of(job(runner, "1"), outcome="failed", kind=kind).was_run is ended


async def test_no_job_is_started_once_the_engine_is_found_to_be_gone(
    fake_engine: FakeEngine, runner: ContainerRunner, tmp_path: Path
) -> None:
    fake_engine.reply("one")
    fake_engine.fail("engine_unreachable")
    other = attrs.evolve(runner.config, image="other/image")
    jobs = [job(runner, "1"), job(runner, "2"), job(runner, "3"), job(ContainerRunner(ClaudeRuntime(), other), "4")]
    told = list[str]()

    results = await run_batch(jobs, at_once=1, watch=Watch(halted=told.append))

    assert [(result.id, result.kind) for result in results] == [("1", None), ("2", "engine_unreachable")]
    assert len(told) == 1
    assert told[0].endswith(": no more jobs are started.")


async def test_an_image_that_is_not_there_ends_only_the_jobs_with_the_same_box(
    fake_engine: FakeEngine, runner: ContainerRunner, tmp_path: Path
) -> None:
    config = attrs.evolve(runner.config, image="other/image")
    other = ContainerRunner(ClaudeRuntime(), config, tmp_path / "state")
    fake_engine.fail("image_not_found")
    fake_engine.reply("four")

    results = await run_batch([*(job(runner, str(number)) for number in (1, 2, 3)), job(other, "4")], at_once=1)

    assert [(result.id, result.kind) for result in results] == [("1", "image_not_found"), ("4", None)]


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_FIRST_WAIT", 0.001)


@pytest.mark.usefixtures("no_waits")
async def test_what_may_pass_is_tried_again(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.fail("engine_busy")
    fake_engine.messages([{"type": "result", "is_error": True, "api_error_status": 529, "total_cost_usd": 0.25}])
    fake_engine.reply("at last", cost_usd=0.5)

    (result,) = await run_batch([job(runner, "1")], retries=2)

    assert (result.outcome, result.result, result.attempts, result.cost_usd) == ("succeeded", "at last", 3, 0.75)


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize(("kind", "attempts"), [("engine_unreachable", 3), ("agent_failed", 1), ("image_not_found", 1)])
async def test_only_what_may_pass_is_tried_again_and_not_for_ever(
    fake_engine: FakeEngine, runner: ContainerRunner, kind: str, attempts: int
) -> None:
    fake_engine.fail(kind, times=5)

    (result,) = await run_batch([job(runner, "1")], retries=2)

    assert (result.kind, result.attempts) == (kind, attempts)


async def test_a_wait_for_another_try_can_be_cancelled(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.fail("engine_unreachable", times=5)

    with anyio.move_on_after(0.5) as scope:
        await run_batch([job(runner, "1")], retries=5)

    assert scope.cancelled_caught
    assert all(call.returncode is not None for call in fake_engine.calls)


async def test_no_job_is_started_when_the_budget_is_spent_and_more_of_it_goes_on(
    fake_engine: FakeEngine, runner: ContainerRunner, tmp_path: Path
) -> None:
    for text in ("one", "two", "three", "four"):
        fake_engine.reply(text, cost_usd=0.5)
    jobs, told, ended = [job(runner, str(number)) for number in range(1, 5)], list[str](), list[int]()

    for budget in (0.75, 0.75, 1.5, None):
        with ResultFile(tmp_path / "results") as results:
            watch = Watch(halted=told.append)
            ended += [len(await run_batch(jobs, at_once=1, results=results, total_budget_usd=budget, watch=watch))]

    assert ended == [2, 2, 3, 4]
    assert told == [
        "$1.00 of $0.75 are spent: no more jobs are started.",
        "$1.00 of $0.75 are spent: no more jobs are started.",
        "$1.50 of $1.5 are spent: no more jobs are started.",
    ]


@pytest.mark.parametrize(
    "limits", [{"retries": -1}, {"retries": 101}, {"total_budget_usd": 0}, {"total_budget_usd": float("nan")}]
)
async def test_limits_that_are_none_are_refused(runner: ContainerRunner, limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(limits))):
        await run_batch([job(runner, "1")], **limits)


def test_a_new_results_file_that_no_result_came_into_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "results"
    with ResultFile(path):
        assert path.exists()
    assert not path.exists()

    path.touch()
    with ResultFile(path):
        pass
    assert path.exists()


async def test_a_job_that_is_refused_is_named_by_its_place(runner: ContainerRunner) -> None:
    lost = attrs.evolve(job(runner, "lost", workspace="/no/such/folder"), source="jobs.jsonl:7")

    with pytest.raises(ConfigError, match=r"jobs\.jsonl:7"):
        await run_batch([lost])


async def test_what_is_no_job_is_told_as_such() -> None:
    with pytest.raises(ConfigError, match="jobs must be each a Job"):
        await run_batch(["hello"])  # type: ignore[list-item]  # it is no job


async def test_what_its_watcher_raises_ends_a_batch(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    class Enough(Exception):  # noqa: N818  it is no error
        pass

    def said(_: Job, message: Message) -> None:
        raise Enough

    fake_engine.reply("done")

    with pytest.RaisesGroup(Enough):
        await run_batch([job(runner, "1")], watch=Watch(said=said))
