"""The shadow of a workspace, with real repositories."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import anyio
import pytest

from container_runner.workspace.shadow import Shadow
from tests.workspace.conftest import Git, files

pytestmark = pytest.mark.anyio


async def test_a_snapshot_is_the_folder_as_it_is(work: Path, state: Path, user: Git) -> None:
    (work / "a").write_text("changed\n")
    (work / "staged").write_text("staged\n")
    user("add", "staged")
    (work / "new").write_text("new\n")
    (work / "new").chmod(0o755)
    (work / "sub/b").unlink()
    (work / ".gitignore").write_text("out/\n")
    (work / "out").mkdir()
    (work / "out/x").write_text("x")
    before = user("status", "--porcelain")

    shadow = await Shadow.open(work, state)

    assert await files(shadow, await shadow.snapshot()) == {
        "a": ("100644", b"changed\n"),
        "link": ("120000", b"a"),
        "staged": ("100644", b"staged\n"),
        "new": ("100755", b"new\n"),
        ".gitignore": ("100644", b"out/\n"),
    }
    assert user("status", "--porcelain") == before


async def test_a_second_snapshot_sees_what_changed_since(work: Path, state: Path) -> None:
    shadow = await Shadow.open(work, state)
    first = await shadow.snapshot()
    assert await shadow.snapshot() == first
    (work / "a").write_text("A\n")  # the same size, in the same moment

    second = await shadow.snapshot()

    assert (await files(shadow, second))["a"] == ("100644", b"A\n")
    (work / "a").write_text("a\n")
    assert await shadow.snapshot() == first


async def test_several_may_make_it_at_once(work: Path, state: Path) -> None:
    opened: list[Shadow] = []

    async def make() -> None:
        opened.append(await Shadow.open(work, state))

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(make)

    assert len({await shadow.snapshot() for shadow in opened}) == 1


async def test_a_folder_without_git_is_carried_whole(tmp_path: Path, state: Path) -> None:
    folder = tmp_path / "plain"
    (folder / "x/.git").mkdir(parents=True)
    (folder / "x/.git/config").write_text("no")
    (folder / "x/y").write_text("y")
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")

    shadow = await Shadow.open(folder, state)

    assert not shadow.is_repository
    assert await shadow.user_git("log") == b""
    assert await files(shadow, await shadow.snapshot()) == {
        "x/y": ("100644", b"y"),
        "dangling": ("120000", b"nowhere"),
    }


async def test_a_run_has_refs(work: Path, state: Path, user: Git) -> None:
    shadow = await Shadow.open(work, state)

    await shadow.start("r1")

    base = await shadow.ref("r1", "base")
    assert base is not None
    assert await shadow.ref("r1", "user") == user("rev-parse", "HEAD").strip()
    assert await shadow.ref("r1", "result") is None
    assert await shadow.runs() == ["r1"]
    await shadow.set_refs("r1", {"result": base})
    assert await shadow.ref("r1", "result") == base
    await shadow.discard("r1")
    assert await shadow.runs() == []


async def test_the_base_outlives_what_the_user_throws_away(work: Path, state: Path, user: Git) -> None:
    (work / "staged").write_text("staged\n")
    user("add", "staged")
    shadow = await Shadow.open(work, state)
    await shadow.start("r1")
    user("checkout", "-q", "--orphan", "other")
    user("rm", "-rfq", ".")
    user("commit", "-qm", "empty", "--allow-empty")
    user("branch", "-qD", "main")
    user("reflog", "expire", "--expire=now", "--all")
    user("gc", "-q", "--prune=now")
    assert user("count-objects", "-v").splitlines()[2] == "in-pack: 2"  # the empty commit and its tree

    base = await shadow.ref("r1", "base")

    assert base is not None
    assert set(await files(shadow, base)) == {"a", "sub/b", "link", "staged"}


async def test_what_a_killed_process_left_is_removed_when_it_is_old(work: Path, state: Path) -> None:
    shadow = await Shadow.open(work, state)
    for name in ("scratch-old", "scratch-new"):
        (shadow.folder / name / "inside").mkdir(parents=True)
    os.utime(shadow.folder / "scratch-old", (0, 0))

    await Shadow.open(work, state)

    assert [path.name for path in shadow.folder.glob("scratch-*")] == ["scratch-new"]


@pytest.mark.parametrize("way", ["objects", "objects/pack", "alternates"])
async def test_nothing_is_borrowed_from_where_an_agent_may_have_led(
    work: Path, state: Path, user: Git, tmp_path: Path, way: str
) -> None:
    user("init", "-q", "-b", "main", at="private")
    (tmp_path / "private/secret").write_text("secret\n")
    user("add", "-A", at="private")
    user("commit", "-qm", "secret", at="private")
    user("repack", "-adq", at="private")
    objects = tmp_path / "private/.git/objects"
    for git, dot in ((work / ".git/modules/m", work / "m/.git"), (work / "n/.git", None)):
        git.mkdir(parents=True)
        user("init", "-q", "-b", "main", "--bare", at=git)
        (git / "refs/heads/main").symlink_to(tmp_path / "private/.git/refs/heads/main")
        if way == "alternates":
            (git / "objects/info/alternates").write_text(f"{objects}\n")
        else:
            shutil.rmtree(git / way)
            (git / way).symlink_to(objects / way.removeprefix("objects").lstrip("/"))
        if dot is not None:
            dot.parent.mkdir()
            dot.write_text(f"gitdir: {git}\n")
    user("init", "-q", "--bare", str(work / ".git/modules/own"))
    user("init", "-q", "--bare", str(work / f".git/modules/x\n{objects.parent}"))

    shadow = await Shadow.open(work, state)

    borrowed = [work / ".git/objects", work / ".git/modules/own/objects"]
    assert (shadow.objects / "info/alternates").read_text() == "".join(f"{each}\n" for each in borrowed)
    assert [it.at for it in (await shadow.contents()).repositories] == [b""]


async def test_a_repository_that_was_cut_off_is_made_again(work: Path, state: Path) -> None:
    shadow = Shadow(work, state)
    shadow.git_dir.mkdir(parents=True)
    (shadow.git_dir / "HEAD").write_text("ref: refs/heads/main\n")

    await (await Shadow.open(work, state)).start("r")
