"""A shadow that is tidied: what no run refers to goes, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from container_runner.errors import WorkspaceError
from container_runner.workspace.carry import Carry
from container_runner.workspace.changes import Changes
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.tidy import AGE, tidy, tidy_all
from tests.workspace.scene import FILES, Edit, changes_of, commit, make_folder, ran, write

pytestmark = pytest.mark.anyio


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "work", FILES)


def objects(shadow: Shadow, *, age: float = 0) -> list[Path]:
    """The files with the shadow's own objects, which get this age."""
    found = [file for file in shadow.objects.rglob("*") if file.is_file() and file.parent.name != "info"]
    for file in found:
        now = file.stat().st_mtime
        os.utime(file, (now - age, now - age))
    return found


def edit(text: str) -> Edit:
    def work(box: Path) -> None:
        write(box, {"a": f"{text}\n"})
        commit(box, text)
        write(box, {"b": f"{text} left\n"})

    return work


async def test_what_no_run_refers_to_goes(work: Path, state: Path) -> None:
    write(work, {"untracked": "the user's\n"})
    kept = await changes_of(work, state, edit("kept"), "1" * 32)
    gone = await changes_of(work, state, edit("gone"), "2" * 32)
    shadow = await Shadow.open(work, state)
    await kept.branch("of-kept")
    diff = await kept.diff()
    blob = (await shadow.git("rev-parse", f"{gone.result}:a")).decode().strip()
    await gone.discard()
    before = objects(shadow)

    await tidy(shadow.folder)
    assert sorted(objects(shadow)) == sorted(before)  # all of it is young

    objects(shadow, age=AGE + 10)
    carry = Carry(run="4" * 32, agent="a", workspace=str(work), how="overlay")
    carry.save(state)
    await tidy_all(state)
    assert sorted(objects(shadow)) == sorted(before)  # a run is at work there
    carry.forget(state)
    await tidy_all(state)
    await tidy_all(state)

    packs = [file for file in objects(shadow) if file.suffix == ".pack"]
    assert len(packs) == 1
    assert len(objects(shadow)) == 2
    assert await (await Changes.load(shadow, kept.run)).diff() == diff
    await shadow.git("fsck", "--connectivity-only")
    with pytest.raises(WorkspaceError):
        await shadow.git("cat-file", "-e", blob)
    assert await shadow.snapshot()  # what the index remembers is there
    third = await changes_of(work, state, edit("third"), "3" * 32)
    assert [file.path for file in third.files] == [b"a", b"b"]
    assert sorted((await kept.apply()).paths) == [b"a", b"b"]


async def test_a_git_that_writes_an_index_by_place_leaves_none(work: Path, state: Path) -> None:
    shadow = await ran(work, state, edit("x"))
    await shadow.git("config", "pack.writeReverseIndex", "true")  # as git 2.41 has it by default
    objects(shadow, age=AGE + 10)

    await tidy(shadow.folder)

    assert {file.suffix for file in objects(shadow)} == {".idx", ".pack"}


async def test_without_the_users_repository_all_stays(work: Path, state: Path) -> None:
    shadow = await ran(work, state, edit("x"))
    before = sorted(objects(shadow, age=AGE + 10))
    (work / ".git").rename(work / "elsewhere")

    with pytest.raises(WorkspaceError):
        await tidy(shadow.folder)

    assert sorted(objects(shadow)) == before
