"""`container-runner prune`: what goes, what stays, and why."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest

from container_runner.engine.manager import DEADLINE_LABEL
from container_runner.engine.owner import Owner
from tests.small_engine import SmallEngine, call, dead_owner

ELSEWHERE = attrs.evolve(Owner.current(), host="elsewhere")


@pytest.fixture
def engine(tmp_path: Path) -> SmallEngine:
    engine = SmallEngine.make(tmp_path)
    engine.add("at-work", kind="ephemeral")
    engine.add("orphan", kind="ephemeral", owner=dead_owner(), state=tmp_path / "other")
    engine.add("kept", owner=dead_owner())
    engine.add("ended", status="exited")
    engine.add("overdue", kind="ephemeral", owner=ELSEWHERE, labels={DEADLINE_LABEL: "1"})
    engine.add("far-away", kind="ephemeral", owner=ELSEWHERE, labels={DEADLINE_LABEL: "99999999999"})
    return engine


def test_what_nobody_needs_is_removed_with_the_reason(engine: SmallEngine, capfd: pytest.CaptureFixture[str]) -> None:
    done = call(capfd, "prune", *engine.flags)

    assert done.code == 0
    assert done.lines == [
        f"removed orphan: its owner, process {dead_owner().pid}, is dead",
        "removed ended: it is exited; its agent gets a new one when it is needed",
        "removed overdue: its time limit has passed",
    ]
    assert engine.removed == ["orphan", "ended", "overdue"]


@pytest.mark.parametrize("flag", ["--dry-run", "-n"])
def test_a_dry_run_says_the_same_and_removes_nothing(
    flag: str, engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(capfd, "prune", flag, *engine.flags)

    assert [line.split(":")[0] for line in done.lines] == [f"would remove {n}" for n in ("orphan", "ended", "overdue")]
    assert engine.removed == []


def test_json_tells_names_reasons_and_whether_they_are_gone(
    engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = json.loads(call(capfd, "prune", "--dry-run", "--json", *engine.flags).out)
    done = json.loads(call(capfd, "prune", "--json", *engine.flags).out)

    assert [row["removed"] for row in wanted] == [False, False, False]
    assert [row["removed"] for row in done] == [True, True, True]
    assert [(row["name"], row["agent"]) for row in done] == [("orphan", "bot"), ("ended", "bot"), ("overdue", "bot")]
    assert {*wanted[0]} == {"name", "id", "agent", "reason", "removed"}


def test_what_can_not_be_removed_is_said_last(engine: SmallEngine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.stick("orphan")

    done = call(capfd, "prune", *engine.flags)

    assert done.code == 6
    assert [line.split(":")[0] for line in done.lines] == ["removed ended", "removed overdue"]
    assert "1 could not be removed: orphan." in done.err


def test_nothing_to_do_is_said_to_people_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = SmallEngine.make(tmp_path)

    done = call(capfd, "prune", *engine.flags)

    assert (done.code, done.out) == (0, "")
    assert "nothing" in done.err
    assert call(capfd, "prune", "--json", *engine.flags).out == "[]\n"
