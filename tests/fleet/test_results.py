"""The results of several shards as those of one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from container_runner.errors import ConfigError, StateError
from container_runner.fleet.job import JobResult
from container_runner.fleet.results import ResultFile, merge


def result(id_: str, outcome: Literal["succeeded", "failed"] = "succeeded", **fields: Any) -> JobResult:
    usual: dict[str, Any] = {
        "digest": "d",
        "kind": None if outcome == "succeeded" else "agent_failed",
        "message": None,
        "turns": 1,
    }
    usual |= {"exit_code": 0, "session_id": None, "tokens": 1, "cost_usd": 1.0, "started": "", "duration": 1.0}
    return JobResult(id=id_, outcome=outcome, **{**usual, "result": "", **fields})


def write(path: Path, *results: JobResult, end: bytes = b"") -> Path:
    path.write_bytes(b"".join(result.to_json() + b"\n" for result in results) + end)
    return path


def read(path: Path, results: list[JobResult]) -> ResultFile:
    write(path, *results)
    with ResultFile(path) as file:
        return file


def test_every_line_is_kept_and_what_it_cost_too(tmp_path: Path) -> None:
    one = write(tmp_path / "1", result("a", "failed"), result("b"), result("a"))
    two = write(tmp_path / "2", result("c"), end=b'{"id":"cut o')

    found = merge([one, two])

    assert (len(found.results), found.twice) == (4, [])
    file = read(tmp_path / "all", found.results)
    assert file.cost_usd == 4.0
    assert {name: each.outcome for name, each in file._found.items()} == dict.fromkeys("abc", "succeeded")


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "worse", [result("a", "failed"), result("a", "failed", kind="image_not_found"), result("a", "failed", kind="mount")]
)
def test_of_a_job_that_two_have_the_one_that_succeeded_counts(worse: JobResult, order: int, tmp_path: Path) -> None:
    files = [write(tmp_path / "bad", worse, result("b")), write(tmp_path / "good", result("a", result="fine"))]

    found = merge(files[::order])

    assert found.twice == ["a"]
    assert read(tmp_path / "all", found.results)._found["a"].result == "fine"


def test_of_two_that_succeeded_the_first_counts(tmp_path: Path) -> None:
    files = [write(tmp_path / text, result("a", result=text)) for text in ("one", "two")]

    assert read(tmp_path / "all", merge(files).results)._found["a"].result == "one"


def test_results_of_other_jobs_are_refused_by_their_names(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1", result("a")), write(tmp_path / "2", result("a", digest="other"))

    with pytest.raises(ConfigError, match=f"job 'a' asks for something else in {two} than in {one}"):
        merge([one, two])


def test_what_is_no_results_file_is_refused(tmp_path: Path) -> None:
    (other := tmp_path / "jobs.jsonl").write_text('{"prompt": "Do it."}\n')

    with pytest.raises(ConfigError, match=f"{other}:1"):
        merge([other])
    with pytest.raises(StateError, match="can not be read: No such file"):
        merge([tmp_path / "none"])


def test_a_shard_that_is_at_work_is_waited_for_by_the_caller(tmp_path: Path) -> None:
    with ResultFile(tmp_path / "1") as file:
        file.add(result("a"))
        with pytest.raises(StateError, match="in use by another batch"):
            merge([tmp_path / "1"])

    assert len(merge([tmp_path / "1"]).results) == 1
