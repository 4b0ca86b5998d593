"""The way into a box, with real programs on its side: what git says there is what it says outside."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from container_runner.stream.pipe import open_pipe
from container_runner.workspace.changes import Changes
from container_runner.workspace.manifest import Facts, Manifest
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.tar import Source
from container_runner.workspace.way_in import IN, send
from tests.workspace.conftest import Box, Git

pytestmark = pytest.mark.anyio


class Inside:
    """What has come into a box."""

    def __init__(self, folder: Path, manifest: dict[bytes, Facts], path: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self._path = path

    def git(self, *words: str, at: str = ".") -> str:
        env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
        argv = ["git", "-c", "user.name=a", "-c", "user.email=a@x", *words]
        return subprocess.run(argv, cwd=self.folder / at, env=env, capture_output=True, check=True, text=True).stdout


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


async def carried(
    folder: Path,
    state: Path,
    path: str,
    history: int | Literal["all"] = "all",
    ignored: tuple[str, ...] = (),
    run: str | None = None,
) -> Inside:
    """Carry *folder* into a box."""
    shadow = await Shadow.open(folder, state)
    box = state.parent / "inside"
    box.mkdir()
    start = None if run is None else await shadow.left_by(run)
    below = await shadow.snapshot()
    stream = send(shadow, history=history, ignored=ignored, start=start, below=below)
    found: dict[bytes, Facts] = {}
    async with open_pipe(
        ["sh", "-c", IN, "sh", str(box)], env={"PATH": path, "HOME": "/nonexistent"}, stdin=stream
    ) as pipe:
        manifest = Manifest(Source(pipe, 2**30))
        async for records in manifest.records():
            found |= records
        assert await anext(pipe, b"") == b""
        assert await pipe.wait() == 0, pipe.stderr
    assert list(shadow.folder.glob("scratch-*")) == []
    return Inside(box, found, path)


def dirty(work: Path, user: Git) -> None:
    (work / "a").write_text("changed\n")
    (work / "staged").write_text("staged\n")
    user("add", "staged")
    (work / "staged").write_text("and changed\n")
    (work / "untracked").write_text("x")
    (work / "sub/b").unlink()
    user("rm", "-q", "--cached", "link")


def modes(work: Path, user: Git) -> None:
    (work / "a").chmod(0o755)
    (work / "x" / ("y" * 120)).mkdir(parents=True)
    (work / "x" / ("y" * 120) / "z").write_text("z")


def ignored(work: Path, user: Git) -> None:
    (work / ".gitignore").write_text("out\n")
    (work / ".git/info/exclude").write_text("mine\n")
    (work.parent / "home/.config/git").mkdir(parents=True)
    (work.parent / "home/.config/git/ignore").write_text("everywhere\n")
    for name in ("out", "mine", "everywhere", "seen"):
        (work / name).write_text("x")


def detached(work: Path, user: Git) -> None:
    user("checkout", "-q", "--detach")
    (work / "a").write_text("changed\n")


def odd(work: Path, user: Git) -> None:
    for name in (b"-rf", b"a b", b"new\nline", b"\xff\xfe", b"x" * 200, b"\x1b[31m", b"q\"'\\"):
        (work / os.fsdecode(name)).write_bytes(name)
    user("add", "-A")
    user("commit", "-qm", "odd")


def merging(work: Path, user: Git) -> None:
    user("checkout", "-qb", "other")
    (work / "a").write_text("theirs\n")
    user("commit", "-qam", "theirs")
    user("checkout", "-q", "main")
    (work / "a").write_text("ours\n")
    user("commit", "-qam", "ours")
    with pytest.raises(subprocess.CalledProcessError):
        user("merge", "other")


def crlf(work: Path, user: Git) -> None:
    (work / ".gitattributes").write_text("*.txt text eol=crlf\n")
    (work / "a.txt").write_bytes(b"a\r\nb\r\n")
    user("add", "-A")
    user("commit", "-qm", "crlf")


def crlf_by_the_user(work: Path, user: Git) -> None:
    user("config", "--global", "core.autocrlf", "true")
    (work / "a.txt").write_bytes(b"a\r\nb\r\n")
    user("add", "-A")
    user("commit", "-qm", "crlf")


def filtered(work: Path, user: Git) -> None:
    user("config", "--global", "filter.lfs.clean", "echo pointer; cat >/dev/null")
    user("config", "--global", "filter.lfs.smudge", "echo content")
    (work / ".gitattributes").write_text("*.bin filter=lfs\n")
    (work / "large.bin").write_text("content\n")
    (work / "changed.bin").write_text("content\n")
    user("add", "-A")
    user("commit", "-qm", "lfs")


def empty(work: Path, user: Git) -> None:
    user("update-ref", "-d", "HEAD")
    user("rm", "-q", "--cached", "a")


def sparse(work: Path, user: Git) -> None:
    user("sparse-checkout", "set", "--no-cone", "/a")


STATES = [dirty, modes, ignored, detached, odd, merging, crlf, crlf_by_the_user, filtered, empty, sparse]


@pytest.mark.parametrize("make", STATES)
async def test_git_says_in_the_box_what_it_says_outside(
    work: Path, state: Path, user: Git, programs: str, make: Callable[[Path, Git], None]
) -> None:
    make(work, user)
    words = ("status", "--branch", "--porcelain=v2", "-z")

    inside = await carried(work, state, programs)

    assert inside.git(*words) == user(*words)
    commits = "" if make is empty else user("log", "main", "--format=%H")
    assert inside.git("log", "--all", "--format=%H") == commits
    inside.git("fsck", "--strict")
    files = [path for path in work.rglob("*") if ".git" not in path.parts and not path.is_dir()]
    missing = {path.name for path in files if not os.path.lexists(inside.folder / path.relative_to(work))}
    assert missing == ({"out", "mine", "everywhere"} if make is ignored else set())


async def test_a_filtered_file_is_as_it_lies_there_and_its_pointer_stays(
    work: Path, state: Path, user: Git, programs: str
) -> None:
    filtered(work, user)
    (work / "changed.bin").write_text("edited\n")

    inside = await carried(work, state, programs)

    assert (inside.folder / "large.bin").read_text() == "content\n"
    assert inside.git("status", "--porcelain") == " M changed.bin\n"
    (inside.folder / "a").write_text("A\n")
    inside.git("commit", "-qam", "x")
    assert inside.git("show", "HEAD:large.bin") == "pointer\n"


async def test_a_worktree_is_a_source(work: Path, state: Path, user: Git, programs: str) -> None:
    user("worktree", "add", "-q", "../tree", "-b", "other")
    tree = work.parent / "tree"
    (tree / "a").write_text("changed\n")
    user("commit", "-qam", "second", at=tree)
    (tree / "new").write_text("new\n")

    inside = await carried(tree, state, programs)

    assert inside.git("status", "--branch", "--porcelain") == user("status", "--branch", "--porcelain", at=tree)
    assert inside.git("log", "--format=%s").split() == ["second", "first"]
    assert inside.git("branch", "--format=%(refname)") == "refs/heads/other\n"


@pytest.mark.parametrize("words", [("--depth=1", "--no-local"), ("--shared",), ("--no-local",)])
async def test_clones(work: Path, state: Path, user: Git, programs: str, words: tuple[str, ...]) -> None:
    (work / "a").write_text("changed\n")
    user("commit", "-qam", "second")
    user("clone", "-q", *words, f"file://{work}" if "--depth=1" in words else str(work), "../clone")
    clone = work.parent / "clone"
    (clone / "a").write_text("again\n")

    inside = await carried(clone, state, programs)

    assert inside.git("status", "--porcelain") == " M a\n"
    assert inside.git("log", "--format=%s") == user("log", "--format=%s", at=clone)
    assert inside.git("remote") == ""
    inside.git("commit", "-qam", "third")
    inside.git("fsck")


async def test_a_history_may_be_cut(work: Path, state: Path, user: Git, programs: str) -> None:
    for number in range(4):
        (work / "a").write_text(f"{number}\n")
        user("commit", "-qam", f"{number}")

    inside = await carried(work, state, programs, history=1)

    assert inside.git("log", "--format=%s").split() == ["3", "2"]
    assert inside.git("status", "--porcelain") == ""
    inside.git("fsck")
    assert inside.git("cat-file", "--batch-check", "--batch-all-objects").count("commit") == 2


async def test_a_repository_of_sha256(tmp_path: Path, state: Path, user: Git, programs: str) -> None:
    user("init", "-q", "--object-format=sha256", at="long")
    (tmp_path / "long/a").write_text("a\n")
    user("add", "-A", at="long")
    user("commit", "-qm", "first", at="long")
    (tmp_path / "long/b").write_text("b\n")

    inside = await carried(tmp_path / "long", state, programs)

    assert inside.git("status", "--porcelain") == "?? b\n"
    assert inside.git("rev-parse", "HEAD") == user("rev-parse", "HEAD", at="long")


async def test_submodules_and_other_repositories_inside(work: Path, state: Path, user: Git, programs: str) -> None:
    user("init", "-q", at="lib")
    (work.parent / "lib/l").write_text("l\n")
    user("add", "-A", at="lib")
    user("commit", "-qm", "lib", at="lib")
    user("submodule", "add", "-q", str(work.parent / "lib"), "mod")
    user("commit", "-qm", "with mod")
    (work / "mod/l").write_text("changed\n")
    user("init", "-q", at=work / "other")
    (work / "other/o").write_text("o\n")

    inside = await carried(work, state, programs)

    assert inside.git("status", "--porcelain") == user("status", "--porcelain") == " M mod\n?? other/\n"
    assert inside.git("status", "--porcelain", at="mod") == " M l\n"
    assert inside.git("status", "--porcelain", at="other") == "?? o\n"
    inside.git("commit", "-qam", "in mod", at="mod")
    inside.git("commit", "-qam", "and outside")
    inside.git("submodule", "update")
    assert (inside.folder / "mod/l").read_text() == "changed\n"


async def test_a_folder_without_git(tmp_path: Path, state: Path, programs: str) -> None:
    folder = tmp_path / "plain"
    (folder / "x").mkdir(parents=True)
    (folder / "x/y").write_text("y")
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")

    inside = await carried(folder, state, programs)

    assert set(inside.manifest) == {b"x/y", b"dangling"}
    assert not (inside.folder / ".git").exists()


async def test_ignored_files_go_along_if_they_are_named(work: Path, state: Path, user: Git, programs: str) -> None:
    (work / ".gitignore").write_text(".env*\nbig/\n")
    (work / ".worktreeinclude").write_text("# what a worktree needs\n.env.local\na\n")
    user("add", "-A")
    user("commit", "-qm", "include")
    for name in (".env", ".env.local", ".env.test"):
        (work / name).write_text("secret")
    (work / ".worktreeinclude").write_text(".env*\n")  # not committed: it may be an agent's

    inside = await carried(work, state, programs, ignored=(".env.test",))

    assert {name for name in inside.manifest if name.startswith(b".env")} == {b".env.local", b".env.test"}


async def test_no_file_of_the_users_comes_by_what_a_repository_says(
    work: Path, state: Path, user: Git, programs: str, home: Path
) -> None:
    """An earlier agent may have made the repository, or have led its index to another one's."""
    (home / "key").write_text("secret\n")
    (home / "ignores").write_text("mine\n")
    user("config", "--global", "core.excludesFile", str(home / "ignores"))
    user("init", "-q", at="work/nested")
    user("init", "-q", at="other")
    (work.parent / "other/secret").write_text("secret\n")
    user("add", "secret", at="other")
    (work / "nested/.git/index").symlink_to(work.parent / "other/.git/index")
    for at in ("work", "work/nested"):
        user("config", "core.excludesFile", str(home / "key"), at=at)

    inside = await carried(work, state, programs)

    for at in (".git", "nested/.git"):
        assert (inside.folder / at / "info/exclude").read_text().startswith("mine\n")
    assert inside.git("status", "--porcelain") == "?? nested/\n"
    files = [path for path in inside.folder.rglob("*") if path.is_file()]
    assert not any(b"secret" in path.read_bytes() for path in files)


async def test_nothing_that_git_obeys_goes_along(work: Path, state: Path, user: Git, programs: str) -> None:
    (work / ".git/hooks").mkdir(exist_ok=True)
    (work / ".git/hooks/post-checkout").write_text("#!/bin/sh\n")
    user("config", "core.fsmonitor", "/bin/false")
    user("config", "alias.x", "!false")
    user("remote", "add", "origin", "https://user:password@host/x")
    user("branch", "secret")

    inside = await carried(work, state, programs)

    made = {path.relative_to(inside.folder / ".git").parts[0] for path in (inside.folder / ".git").iterdir()}
    assert made == {"HEAD", "config", "index", "info", "objects", "refs"}
    assert set(inside.git("config", "--local", "--list", "--name-only").split()) == {
        *("core.bare", "core.repositoryformatversion", "core.filemode"),
    }
    assert inside.git("branch", "--format=%(refname)") == "refs/heads/main\n"


@pytest.mark.parametrize("history", ["all", 0])
async def test_what_an_earlier_run_has_left_can_be_carried_in(
    work: Path, state: Path, box: Box, history: int | Literal["all"]
) -> None:
    box.sh("echo 1 >new; chmod 755 new; git add new; git commit -qm second; echo 2 >new; rm sub/b; ln -s new way")
    await box.out()
    (work / "a").write_text("changed by the user since\n")

    inside = await carried(work, state, os.environ["PATH"], history=history, run="r")

    assert inside.git("log", "--format=%s").split() == (["second", "first"] if history == "all" else ["second"])
    assert inside.git("status", "--porcelain", "--branch") == "## main\n M new\n D sub/b\n?? way\n"
    assert (inside.folder / "new").read_text() == "2\n"
    assert (inside.folder / "a").read_text() == "a\n"
    inside.git("fsck")


async def test_a_filter_counts_in_what_an_earlier_run_has_left_as_well(
    work: Path, state: Path, user: Git, box: Box, programs: str
) -> None:
    (work / ".gitattributes").write_text("*.bin filter=upper\n")
    user("config", "filter.upper.clean", "tr a-z A-Z")
    (work / "kept.bin").write_text("kept\n")
    (work / "changed.bin").write_text("old\n")
    user("add", "-A")
    user("commit", "-qm", "filtered")
    user("update-index", "--refresh")
    await box.shadow.start("r")
    shutil.rmtree(box.folder)
    shutil.copytree(work, box.folder, symlinks=True)
    box.sh("echo new >changed.bin")
    await box.out(before=False)

    inside = await carried(work, state, programs, run="r")

    assert inside.git("status", "--porcelain") == " M changed.bin\n"
    assert (inside.folder / "kept.bin").read_text() == "kept\n"


async def test_a_submodule_that_an_earlier_run_removed_is_not_there(
    work: Path, state: Path, user: Git, box: Box, programs: str, tmp_path: Path
) -> None:
    user("init", "-q", at="other")
    (tmp_path / "other/x").write_text("x\n")
    user("add", "-A", at="other")
    user("commit", "-qm", "other", at="other")
    user("submodule", "--quiet", "add", str(tmp_path / "other"), "module")
    user("commit", "-qm", "with a module")
    await box.shadow.start("r")
    shutil.rmtree(box.folder)
    shutil.copytree(work, box.folder, symlinks=True)
    box.sh("rm -rf module; echo a file now >module")
    await box.out(before=False)

    inside = await carried(work, state, programs, run="r")

    assert (inside.folder / "module").read_text() == "a file now\n"


async def test_a_reader_that_goes_away_leaves_nothing_open(work: Path, state: Path) -> None:
    shadow = await Shadow.open(work, state)
    for stop_after in (1, 2, 3):  # in front of the repository's files, in them, and in those of the folder
        chunks = send(shadow, history="all", ignored=(), below=await shadow.snapshot())
        for _ in range(stop_after):
            await anext(chunks)
        await chunks.aclose()
    gc.collect()  # which warns of a generator that was left in the middle, and warnings are errors here
    assert list(shadow.folder.glob("scratch-*")) == []


def write_blobs(objects: Path, count: int, size: int) -> list[str]:
    """A pack of blobs that do not compress, and their ids. (Git takes many times as long for it as hashlib does.)"""
    part = os.urandom(2**20)
    found: dict[bytes, tuple[int, int]] = {}
    made = objects / "pack/made"
    made.parent.mkdir(exist_ok=True)
    with made.open("wb") as file:
        whole = hashlib.sha1(head := struct.pack(">4sII", b"PACK", 2, count))
        file.write(head)
        for number in range(count):
            at, crc, oid = file.tell(), 0, hashlib.sha1(b"blob %d\0" % size)
            parts = [b"%16d" % (number * size + mark) + part[16:] for mark in range(0, size, 2**20)]
            for data in _as_packed(parts, oid, size):
                crc = zlib.crc32(data, crc)
                whole.update(data)
                file.write(data)
            found[oid.digest()] = crc, at
        file.write(whole.digest())
    ids = sorted(found)
    fanout = [sum(oid[0] <= byte for oid in ids) for byte in range(256)]
    index = struct.pack(">4sI256I", b"\xfftOc", 2, *fanout) + b"".join(ids)
    index += struct.pack(f">{2 * count}I", *(found[oid][0] for oid in ids), *(found[oid][1] for oid in ids))
    index += whole.digest()
    pack = made.with_name(f"pack-{whole.hexdigest()}.pack")
    pack.with_suffix(".idx").write_bytes(index + hashlib.sha1(index).digest())
    made.rename(pack)
    return [oid.hex() for oid in found]


def _as_packed(parts: Iterable[bytes], oid: hashlib._Hash, size: int) -> Iterator[bytes]:
    """A blob as it stands in a pack, stored and not compressed. *oid* becomes its id."""
    stored = zlib.compressobj(0)
    left = size >> 4
    header = [0x30 | size & 15 | (128 if left else 0)]
    while left:
        header.append(left & 127 | (128 if left >> 7 else 0))
        left >>= 7
    yield bytes(header)
    for part in parts:
        oid.update(part)
        yield stored.compress(part)
    yield stored.flush()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.timeout(600)
async def test_a_gigabyte_of_history(work: Path, state: Path, tmp_path: Path, user: Git) -> None:
    """It goes in once, in small pieces, or not at all; and what is committed on it comes out without it."""
    count, size = 8, 128 * 2**20
    other, *blobs = write_blobs(work / ".git/objects", count + 1, size)
    who = b"committer U <u@x> 0 +0000\ndata 0\n"
    lines = [b"commit refs/heads/main\n%sfrom refs/heads/main^0\nM 644 %s big\n" % (who, blobs[0].encode())]
    lines += [b"commit refs/heads/main\n%sM 644 %s big\n" % (who, blob.encode()) for blob in blobs[1:]]
    lines += [b"commit refs/heads/main\n%sD big\n" % who]
    lines += [b"commit refs/heads/other\n%sfrom refs/heads/main^0\nM 644 %s big\n" % (who, other.encode())]
    user("fast-import", "--quiet", stdin=b"".join(lines))
    shadow = await Shadow.open(work, state)
    below = await shadow.start("r")
    sent, largest = dict[int | Literal["all"], int](), 0
    for history in ("all", 1, 0):
        sent[history] = 0
        async for chunk in send(shadow, history=history, below=below):
            sent[history] += len(chunk)
            largest = max(largest, len(chunk))
    box = Box(shadow, tmp_path / "box", os.environ["PATH"])
    user("clone", "-q", "--shared", "work", "box", at=".")
    await box.remember()
    box.sh("echo more >>a; git commit -qam more; echo edited >sub/b")

    outcome = await box.out()

    assert count * size < sent["all"] < count * size + 2**20  # and nothing of the other branch
    assert count * size // count < sent[1] < count * size // count + 2**20
    assert sent[0] < 2**20
    assert largest < 2**21
    assert outcome.commits is not None
    assert (await shadow.git("rev-list", "--count", str(outcome.commits.head))).strip() == b"%d" % (count + 3)
    changes = await Changes.load(shadow, "r")
    assert ([file.path for file in changes.files], len(changes.commits)) == ([b"a", b"sub/b"], 1)
    assert sum(file.stat().st_size for file in shadow.objects.rglob("*") if file.is_file()) < 2**20
    shutil.rmtree(work)  # pytest would keep it
