"""A workspace that goes to a node and comes back, here from one state folder to another."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from container_runner.errors import WorkspaceError
from container_runner.fleet import travel
from container_runner.fleet.travel import Luggage, Parcel, make_parcel, pack, pack_up, take_home, unpack, wanted_for
from container_runner.workspace.changes import Changes, Notes, write_notes
from container_runner.workspace.findings import Finding
from container_runner.workspace.shadow import Shadow, Start

RUN = "0123456789abcdef0123456789abcdef"


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
    done = subprocess.run(["git", *names, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def fill(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "crlf.txt").write_bytes(b"one\r\ntwo\r\n")
    (folder / "sub/run.sh").write_text("#!/bin/sh\n")
    (folder / "sub/run.sh").chmod(0o755)
    (folder / "link").symlink_to("sub/run.sh")
    (folder / ".gitattributes").write_text("* text eol=lf ident\n*.txt filter=evil\n")
    (folder / ".gitignore").write_text("*.log\n")
    return folder


@pytest.fixture(params=["repository", "folder"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = fill(tmp_path / "work")
    if request.param == "repository":
        git(folder, "init", "-q", "-b", "main")
        git(folder, "add", "--all")
        git(folder, "commit", "-q", "-m", "First")
        (folder / "forced.log").write_text("ignored, and tracked\n")
        git(folder, "add", "--force", "forced.log")
        (folder / "untracked.txt").write_text("mine\n")
        (folder / "left.log").write_text("ignored\n")
    return folder


async def sent(workspace: Path, home: Path, away: Path) -> tuple[Shadow, Start, Parcel, Path]:
    shadow = await Shadow.open(workspace, home)
    start = await shadow.hold()
    parcel = await make_parcel(shadow, start)
    return shadow, start, parcel, await unpack(parcel, away / "cache", pack(shadow, wanted_for(parcel)))


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    names = [path for path in folder.rglob("*") if ".git" not in path.parts and not path.is_dir()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.lstat().st_mode & 0o100) for path in names}


async def test_a_node_gets_the_folder_byte_for_byte(workspace: Path, tmp_path: Path) -> None:
    _, _, parcel, there = await sent(workspace, tmp_path / "home", tmp_path / "away")

    assert content(there) == {name: it for name, it in content(workspace).items() if name != "left.log"}
    assert (there / "link").is_symlink()
    assert parcel.is_repository == (there / ".git").exists() == (workspace / ".git").exists()
    if parcel.is_repository:
        assert git(there, "rev-parse", "HEAD") == git(workspace, "rev-parse", "HEAD")
        assert git(there, "status", "--porcelain") == git(workspace, "status", "--porcelain")
    theirs = await (await Shadow.open(there, tmp_path / "away")).hold()
    assert (await make_parcel(await Shadow.open(there, tmp_path / "away"), theirs)).tree == parcel.tree


async def test_the_same_folder_is_made_once_and_old_ones_go(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow, start, _, there = await sent(workspace, tmp_path / "home", tmp_path / "away")
    parcel = await make_parcel(shadow, start)
    again = await unpack(parcel, tmp_path / "away/cache", pack(shadow, wanted_for(parcel)))
    assert again == there
    assert [path.name for path in (tmp_path / "away/cache").iterdir()] == [there.name]

    (workspace / "new.txt").write_text("new\n")
    monkeypatch.setattr(travel, "_OLD", -1.0)
    *_, newer = await sent(workspace, tmp_path / "home", tmp_path / "away")

    assert [path.name for path in (tmp_path / "away/cache").iterdir()] == [newer.name] != [there.name]


async def test_no_part_of_a_pack_is_empty(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow = await Shadow.open(workspace, tmp_path / "home")
    wanted = wanted_for(await make_parcel(shadow, await shadow.hold()))
    whole = b"".join([part async for part in pack(shadow, wanted)])
    monkeypatch.setattr(travel, "CHUNK", len(whole))

    assert [part async for part in pack(shadow, wanted)] == [whole]


async def test_what_another_node_of_this_machine_moves_meanwhile_is_no_failure(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "away/cache"
    cache.mkdir(parents=True)
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([folder / "new-moved"] if folder == cache else []))

    *_, there = await sent(workspace, tmp_path / "home", tmp_path / "away")

    assert there.is_dir()


async def worked(there: Path, away: Path) -> tuple[Luggage, str, Shadow]:
    """What comes of a run on the node that changes a file, makes one and, in a repository, commits."""
    shadow = await Shadow.open(there, away)
    start = await shadow.hold()
    await shadow.start(RUN, start)
    head = None
    (there / "made.txt").write_text("made\n")
    if shadow.is_repository:
        git(there, "add", "made.txt")
        git(there, "commit", "-q", "-m", "By the agent")
        head = git(there, "rev-parse", "HEAD")
    (there / "crlf.txt").write_bytes(b"three\r\n")
    tree = await shadow.snapshot()
    result = (await shadow.git("commit-tree", tree, "-p", start.base, "-m", "Left")).decode().strip()
    await shadow.set_refs(RUN, {"head": head, "result": result})
    await write_notes(shadow, RUN, Notes(findings=(Finding(kind="too large", path=b"big"),), ignored=2))
    return *await pack_up(shadow, await Changes.load(shadow, RUN)), shadow


async def test_the_work_comes_home_as_if_the_run_had_been_here(workspace: Path, tmp_path: Path) -> None:
    home, start, _, there = await sent(workspace, tmp_path / "home", tmp_path / "away")
    luggage, wanted, away = await worked(there, tmp_path / "away")

    changes = await take_home(home, start, luggage, pack(away, wanted))

    assert {file.path: file.status for file in changes.files} == {b"crlf.txt": "modified", b"made.txt": "added"}
    assert ("too large", b"big", 2) in [(each.kind, each.path, changes.ignored) for each in changes.findings]
    assert not (workspace / "made.txt").exists()
    if home.is_repository:
        assert [commit.subject for commit in changes.commits] == ["By the agent"]
        await changes.branch("agent/made")
        assert git(workspace, "show", "agent/made:made.txt") == "made"
    await changes.apply()
    assert (workspace / "crlf.txt").read_bytes() == b"three\r\n"
    assert (await Changes.open(workspace, RUN, tmp_path / "home")).files == changes.files


async def test_work_that_is_cut_off_is_not_taken(workspace: Path, tmp_path: Path) -> None:
    home, start, _, there = await sent(workspace, tmp_path / "home", tmp_path / "away")
    luggage, wanted, away = await worked(there, tmp_path / "away")

    async def cut() -> AsyncIterator[bytes]:
        async for chunk in pack(away, wanted):
            yield chunk[:-30]

    with pytest.raises(WorkspaceError):
        await take_home(home, start, luggage, cut())

    assert RUN not in await home.runs()
    assert not list(home.folder.glob("scratch-*"))
