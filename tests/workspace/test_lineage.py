"""A run that goes on from another brings the work of both, whatever of the first is in the folder already."""

from __future__ import annotations

from pathlib import Path

import pytest

from container_runner.workspace.changes import Changes
from container_runner.workspace.lineage import is_applied
from container_runner.workspace.shadow import Shadow
from tests.workspace.scene import FILES, LINES, changes_of, look, make_folder, write

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["git", "no git"])
def work(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_folder(tmp_path / "work", FILES, is_repository=request.param == "git")


def first(box: Path) -> None:
    write(box, {"a": LINES.replace("4", "four"), "mine": "1\n", "gone later": "x\n"})
    (box / "b").unlink()


def second(box: Path) -> None:
    write(box, {"a": LINES.replace("4", "vier"), "mine": "1\n2\n", "sub/c": "C\n"})
    (box / "gone later").unlink()


WANTED = {"a": LINES.replace("4", "vier"), "mine": "1\n2\n", "sub/c": "C\n"}


def has(work: Path, files: dict[str, str]) -> bool:
    gone = {"b", "gone later"} & {path.name for path in work.iterdir()}
    return not gone and {name: (work / name).read_text() for name in files} == files


async def both(work: Path, state: Path) -> tuple[Changes, Changes]:
    one = await changes_of(work, state, first, "one")
    return one, await changes_of(work, state, second, "two", after="one")


async def test_its_work_is_that_of_both(work: Path, state: Path) -> None:
    one, two = await both(work, state)

    assert {file.path for file in two.files} == {b"a", b"b", b"mine", b"sub/c"}
    await two.apply()

    assert has(work, WANTED)
    assert (await two.apply()).paths == ()
    assert (await one.apply()).paths == (b"gone later",)  # which nobody could tell from one that was taken back


async def test_what_was_applied_meanwhile_is_in_nobodys_way(work: Path, state: Path) -> None:
    one, two = await both(work, state)
    await one.apply()

    applied = await two.apply()

    assert has(work, WANTED)
    assert set(applied.paths) == {b"a", b"mine", b"sub/c", b"gone later"}


async def test_what_the_user_has_changed_since_an_apply_stays(work: Path, state: Path) -> None:
    one, two = await both(work, state)
    await one.apply()
    (work / "a").write_text("zero\n" + (work / "a").read_text())

    await two.apply()

    assert has(work, WANTED | {"a": "zero\n" + LINES.replace("4", "vier")})


async def test_what_was_taken_back_comes_again(work: Path, state: Path) -> None:
    before = look(work)
    one, two = await both(work, state)
    await one.apply()
    write(work, FILES)
    (work / "mine").unlink()
    (work / "gone later").unlink()
    assert look(work) == before

    await two.apply()

    assert has(work, WANTED)


async def test_forks_of_one_run_are_both_applied(work: Path, state: Path) -> None:
    one = await changes_of(work, state, first, "one")
    left = await changes_of(
        work, state, lambda box: write(box, {"a": "zero\n" + LINES.replace("4", "four")}), "left", after="one"
    )
    right = await changes_of(work, state, second, "right", after="one")

    await left.apply()
    await right.apply()

    assert has(work, WANTED | {"a": "zero\n" + LINES.replace("4", "vier")})
    shadow = await Shadow.open(work, state)
    assert await is_applied(shadow, one.result)
    await left.discard()
    await right.discard()
    assert not await is_applied(shadow, one.result)


async def test_a_finding_that_was_taken_or_left_out_stays_so(work: Path, state: Path) -> None:
    one = await changes_of(work, state, lambda box: write(box, {".envrc": "1\n", ".npmrc": "1\n"}), "one")
    two = await changes_of(work, state, lambda box: write(box, {".envrc": "2\n", ".npmrc": "2\n"}), "two", after="one")
    await one.apply([".envrc"])

    await two.apply()
    assert (work / ".envrc").read_text() == "1\n"
    assert not (work / ".npmrc").exists()

    await two.apply(["all"])
    assert ((work / ".envrc").read_text(), (work / ".npmrc").read_text()) == ("2\n", "2\n")


async def test_a_work_of_three_runs(work: Path, state: Path) -> None:
    one, _ = await both(work, state)
    three = await changes_of(work, state, lambda box: write(box, {"a": "3\n" + LINES}), "three", after="two")
    await one.apply()
    (work / "a").write_text((work / "a").read_text() + "nine\n")

    await three.apply()

    assert has(work, WANTED | {"a": "3\n" + LINES + "nine\n"})
