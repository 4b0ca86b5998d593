"""`container-runner stop`: which containers a name means, and what is said of those that stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.small_engine import SmallEngine, call


@pytest.fixture
def engine(tmp_path: Path) -> SmallEngine:
    engine = SmallEngine.make(tmp_path)
    engine.add("bot-1")
    engine.add("bot-2", status="exited")
    engine.add("nurse-1", agent="nurse", kind="ephemeral")
    engine.add("bot-elsewhere", state=tmp_path / "other")
    return engine


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bot"], ["bot-1", "bot-2"]),
        (["bot-2"], ["bot-2"]),
        (["nurse", "bot-1"], ["nurse-1", "bot-1"]),
        (["bot", "bot-1"], ["bot-1", "bot-2"]),
        (["bot-elsewhere"], ["bot-elsewhere"]),
        (["--all"], ["bot-1", "bot-2", "nurse-1"]),
    ],
)
def test_a_name_means_a_container_or_an_agent_of_this_state_folder(
    words: list[str], expected: list[str], engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(capfd, "stop", *words, *engine.flags)

    assert done.code == 0
    assert done.lines == expected
    assert engine.removed == expected


def test_what_ps_shows_of_a_run_means_its_container(engine: SmallEngine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.add("container-runner-bot-0123456789ab")

    assert call(capfd, "stop", "0123456789ab", *engine.flags).lines == ["container-runner-bot-0123456789ab"]


def test_a_container_of_a_name_goes_before_an_agent_of_it(
    engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    engine.add("nurse", agent="other")

    assert call(capfd, "stop", "nurse", *engine.flags).lines == ["nurse"]


def test_a_misspelt_name_gets_a_suggestion_and_nothing_is_stopped(
    engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(capfd, "stop", "bot-1", "nures", *engine.flags)

    assert done.code == 6
    assert "'nures'" in done.err
    assert "Did you mean nurse?" in done.err
    assert engine.removed == []


@pytest.mark.parametrize("words", [[], ["bot", "--all"]])
def test_either_names_or_all_are_wanted(
    words: list[str], engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(capfd, "stop", *words, *engine.flags)

    assert done.code == 2
    assert "--all" in done.err
    assert engine.removed == []


def test_one_that_can_not_be_removed_does_not_save_the_others(
    engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    engine.stick("bot-1")

    done = call(capfd, "stop", "--all", "--json", *engine.flags)

    assert done.code == 6
    assert [row["name"] for row in json.loads(done.out)] == ["bot-2", "nurse-1"]
    assert "1 could not be removed: bot-1." in done.err
    assert "it is stuck" in done.err
