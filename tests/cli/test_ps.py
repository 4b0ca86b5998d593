"""`container-runner ps`: which containers it lists, and how."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import attrs
import pytest

from container_runner.cli.containers import Row, age
from container_runner.cli.ps import table
from container_runner.engine.locks import LockFile
from container_runner.engine.owner import Owner
from tests.small_engine import SmallEngine, call, dead_owner


@pytest.fixture
def engine(tmp_path: Path) -> SmallEngine:
    return SmallEngine.make(tmp_path)


def test_without_containers_stdout_stays_empty(engine: SmallEngine, capfd: pytest.CaptureFixture[str]) -> None:
    done = call(capfd, "ps", *engine.flags)

    assert (done.code, done.out) == (0, "")
    assert "--all" in done.err
    assert call(capfd, "ps", "--json", *engine.flags).out == "[]\n"


def test_a_table_is_for_people(engine: SmallEngine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.add("container-runner-bot-1")
    engine.add("container-runner-nurse-2", agent="nurse", kind="ephemeral", owner=dead_owner())
    engine.add("container-runner-zoe-3", agent="zoe", owner=dead_owner())

    done = call(capfd, "ps", *engine.flags)

    head, first, second, third = (line.split() for line in done.lines)
    assert third[4:] == [third[4], "-", "no"], "that is as it should be for a kept one"
    assert head[:5] == ["AGENT", "NAME", "KIND", "STATUS", "AGE"]
    assert first[:4] == ["bot", "container-runner-bot-1", "persistent", "running"]
    assert first[5] == "alive"
    assert second[:4] == ["nurse", "container-runner-nurse-2", "ephemeral", "running"]
    assert second[5] == "dead"
    assert "\033" not in done.out
    assert done.lines[0].index("NAME") == done.lines[1].index("container-runner-bot-1")
    assert not any(line.endswith(" ") for line in done.lines)


LONG = f"{'a-folder-with-a-rather-long-name'}-0a1b2c3d"


@pytest.mark.parametrize(
    ("width", "agent", "head"),
    [
        (None, LONG, "AGENT NAME KIND STATUS AGE OWNER IN USE"),
        (200, LONG, "AGENT NAME KIND STATUS AGE OWNER IN USE"),
        (100, "bot", "AGENT NAME KIND STATUS AGE OWNER IN USE"),
        (80, "bot", "AGENT RUN KIND STATUS AGE OWNER IN USE"),
        (80, LONG, "AGENT RUN STATUS AGE IN USE"),
        (80, "x" * 63, "AGENT RUN"),
        (40, LONG, "AGENT RUN"),
    ],
)
def test_a_table_fits_and_what_stop_and_logs_need_is_never_cut(width: int | None, agent: str, head: str) -> None:
    row = Row(
        name=f"container-runner-{agent}-0123456789ab", agent=agent, kind="persistent", status="running",
        created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), owner="alive", owner_pid=123456, in_use=True, is_here=True,
        id="0" * 64,
    )  # fmt: skip

    lines = table([row], dt.datetime(2026, 1, 2, tzinfo=dt.UTC), width).split("\n")

    assert " ".join(lines[0].split()) == head
    assert lines[1].split()[:2] == [agent, row.name if "NAME" in head else "0123456789ab"]
    assert width is None or width < 80 or max(map(len, lines)) <= width


def test_a_label_is_one_row_whatever_it_says() -> None:
    row = Row(
        name="container-runner-a-0123456789ab", agent="a\nb c\x1b[2J", kind="k\nl", status="running",
        created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), owner="alive", owner_pid=1, in_use=True, is_here=True,
        id="0" * 64,
    )  # fmt: skip

    assert len(table([row], dt.datetime(2026, 1, 2, tzinfo=dt.UTC)).split("\n")) == 2


def test_json_has_every_field(engine: SmallEngine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.add("one")

    (row,) = json.loads(call(capfd, "ps", "--json", *engine.flags).out)

    assert row.pop("owner_pid") == Owner.current().pid
    assert row == {
        "name": "one",
        "id": "0" * 64,
        "agent": "bot",
        "kind": "persistent",
        "status": "running",
        "created": "2026-01-02T03:04:05.678901+00:00",
        "owner": "alive",
        "in_use": False,
        "is_here": True,
    }


def test_only_those_of_this_state_folder_unless_all_are_wanted(
    engine: SmallEngine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine.add("here")
    engine.add("there", state=tmp_path / "other")

    here = json.loads(call(capfd, "ps", "--json", *engine.flags).out)
    everywhere = json.loads(call(capfd, "ps", "--all", "--json", *engine.flags).out)

    assert [row["name"] for row in here] == ["here"]
    assert [(row["name"], row["is_here"], row["in_use"]) for row in everywhere] == [
        ("here", True, False),
        ("there", False, None),  # its locks are in the other folder
    ]


def test_a_kept_container_is_in_use_while_somebody_holds_its_lock(
    engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    engine.add("kept", owner=dead_owner())
    lock = LockFile(engine.state / "locks" / "container.kept.lock")

    assert lock.try_acquire(shared=True)
    (held,) = json.loads(call(capfd, "ps", "--json", *engine.flags).out)
    lock.release()
    (free,) = json.loads(call(capfd, "ps", "--json", *engine.flags).out)

    assert (held["in_use"], free["in_use"]) == (True, False)


def test_looking_makes_no_lock_files(engine: SmallEngine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.add("kept")

    call(capfd, "ps", *engine.flags)

    assert not engine.state.exists()


@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        (dead_owner(), ("dead", False)),
        (Owner.current(), ("alive", True)),
        (attrs.evolve(Owner.current(), host="elsewhere"), ("elsewhere", None)),
    ],
)
def test_a_container_of_one_run_is_in_use_while_its_owner_lives(
    owner: Owner, expected: tuple[str, bool | None], engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    engine.add("once", kind="ephemeral", owner=owner)

    (row,) = json.loads(call(capfd, "ps", "--json", *engine.flags).out)

    assert (row["owner"], row["in_use"]) == expected


def test_a_missing_engine_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    done = call(capfd, "ps", "--engine=no-such-engine")

    assert done.code == 3
    assert "no-such-engine" in done.err


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-5, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86399, "23h"), (200000, "2d")],
)
def test_an_age_is_told_in_its_largest_unit(seconds: float, expected: str) -> None:
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    assert age(now - dt.timedelta(seconds=seconds), now) == expected
