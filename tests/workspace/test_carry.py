"""What is written down of a carried workspace, and the folders of its layers."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import attrs
import pytest

from container_runner.errors import StateError
from container_runner.workspace.carry import Carry, Layer

RUN = "0123456789abcdef" * 2


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir(mode=0o750)
    return folder


def carried(state: Path, lower: Path) -> Carry:
    layer = Layer(lower=str(lower), target="/workspace", folder=f"{state}/layers/{RUN}/0")
    return Carry(run=RUN, agent="bot", workspace=str(lower), how="overlay", layers=(layer,), user="1000:1000")


def me() -> tuple[int, int]:
    return os.getuid(), os.getgid()


def test_what_is_written_down_is_read_again(state: Path, lower: Path) -> None:
    carry = carried(state, lower)

    carry.save(state)
    attrs.evolve(carry, phase="run").save(state)

    assert Carry.load(state, RUN) == attrs.evolve(carry, phase="run")
    assert Carry.runs(state) == [RUN]
    assert stat.S_IMODE((state / "carried").stat().st_mode) == 0o700
    assert [path.name for path in (state / "carried").iterdir()] == [f"{RUN}.json"]


def test_what_is_done_is_forgotten(state: Path, lower: Path) -> None:
    carry = carried(state, lower)
    carry.save(state)

    carry.forget(state)
    carry.forget(state)

    assert Carry.load(state, RUN) is None
    assert Carry.runs(state) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": 3}'])
def test_what_we_did_not_write_is_refused(state: Path, text: str) -> None:
    (state / "carried").mkdir(parents=True)
    (state / "carried" / f"{RUN}.json").write_text(text)

    with pytest.raises(StateError, match="not what we wrote"):
        Carry.load(state, RUN)


def test_a_link_in_its_place_is_not_followed(state: Path, tmp_path: Path, lower: Path) -> None:
    carried(tmp_path / "other", lower).save(tmp_path / "other")
    (state / "carried").mkdir(parents=True)
    (state / "carried" / f"{RUN}.json").symlink_to(tmp_path / "other" / "carried" / f"{RUN}.json")

    with pytest.raises(StateError):
        Carry.load(state, RUN)


def test_what_is_written_belongs_to_whoever_owns_the_folder(state: Path, lower: Path) -> None:
    carry = carried(state, lower)
    (layer,) = carry.layers

    carry.make_folders(state, me())
    carry.make_folders(state, me())

    upper, work, own = (Path(path).stat() for path in (layer.upper, layer.work, state / "layers" / RUN))
    assert (upper.st_uid, upper.st_gid, stat.S_IMODE(upper.st_mode)) == (*me(), 0o750)
    assert stat.S_IMODE(work.st_mode) == 0o700
    assert stat.S_IMODE(own.st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders away")
def test_roots_folders_belong_to_others(state: Path, lower: Path) -> None:
    os.chown(lower, 1234, 1235)
    carry = carried(state, lower)

    carry.make_folders(state, (1000, 1001))

    upper, own = Path(carry.layers[0].upper).stat(), (state / "layers" / RUN).stat()
    assert (upper.st_uid, upper.st_gid) == (1234, 1235)
    assert (own.st_uid, own.st_gid) == (1000, 1001)


def test_whatever_an_agent_has_made_is_removed(state: Path, lower: Path, tmp_path: Path) -> None:
    carry = carried(state, lower)
    carry.make_folders(state, me())
    upper = Path(carry.layers[0].upper)
    (tmp_path / "victim").mkdir(mode=0o750)
    (tmp_path / "victim" / "file").write_text("mine")
    (upper / "link").symlink_to(tmp_path / "victim")
    os.mkfifo(upper / "fifo")
    (upper / "closed" / "in").mkdir(parents=True)
    (upper / "closed" / "in" / "file").write_text("x")
    (upper / "closed").chmod(0)
    deep = os.open(upper, os.O_RDONLY)
    for _ in range(1500):  # deeper than Python goes, and than a path can say
        os.mkdir("deeper", dir_fd=deep)
        inner = os.open("deeper", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = inner
    os.close(deep)

    carry.remove_folders(state)
    carry.remove_folders(state)

    assert list((state / "layers").iterdir()) == []
    assert (tmp_path / "victim" / "file").read_text() == "mine"
    assert stat.S_IMODE((tmp_path / "victim").stat().st_mode) == 0o750


def test_a_removal_that_was_cut_off_goes_on(state: Path, lower: Path) -> None:
    carry = carried(state, lower)
    carry.make_folders(state, me())
    (state / "layers" / f"{RUN}.7-abc" / "x").mkdir(parents=True)
    other = state / "layers" / ("f" * 32)
    other.mkdir()

    carry.remove_folders(state)

    assert list((state / "layers").iterdir()) == [other]
