"""The way out of a box, with real programs on its side."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from container_runner.errors import WorkspaceError
from container_runner.workspace.findings import Finding
from tests.workspace.conftest import Box, Git, files

pytestmark = pytest.mark.anyio


async def changed(box: Box, result: str) -> list[str]:
    """What differs between the base and a result, as "M a"."""
    base = await box.shadow.ref("r", "base")
    assert base is not None
    said = (await box.shadow.git("diff-tree", "-r", "--no-renames", "--name-status", "-z", base, result)).split(b"\0")
    return sorted(f"{kind.decode()} {os.fsdecode(name)}" for kind, name in zip(said[::2], said[1::2], strict=False))


async def test_what_was_changed_comes_out_and_nothing_else(box: Box) -> None:
    box.sh("echo A >a; rm sub/b; ln -sf sub link; mkdir -p n/m; printf x >n/m/x; chmod 755 n/m/x; rm -rf .git")

    outcome = await box.out()

    assert await changed(box, outcome.result) == ["A n/m/x", "D sub/b", "M a", "M link"]
    assert await files(box.shadow, outcome.result) == {
        "a": ("100644", b"A\n"),
        "link": ("120000", b"sub"),
        "n/m/x": ("100755", b"x"),
    }
    assert outcome.is_whole
    assert outcome.findings == ()
    assert await box.shadow.ref("r", "result") == outcome.result


async def test_nothing_changed(box: Box) -> None:
    outcome = await box.out()

    assert await changed(box, outcome.result) == []
    assert outcome.commits is not None
    assert outcome.commits.head == await box.shadow.ref("r", "user")
    assert outcome.commits.branch == "refs/heads/main"


async def test_without_a_manifest_everything_is_compared(box: Box) -> None:
    box.sh("echo A >a; rm sub/b")

    outcome = await box.out(before=False)

    assert await changed(box, outcome.result) == ["D sub/b", "M a"]


async def test_a_time_that_was_set_back_hides_nothing(box: Box) -> None:
    box.sh("echo b >a; touch -r sub/b a")

    outcome = await box.out()

    assert await changed(box, outcome.result) == ["M a"]


ODD = (
    *(b"-rf", b"a b", b'q"', b"new\nline", b"\xff\xfe", b"\x1b[31m", b"back\\slash", "é".encode(), b":(top)x", b"*"),
    *(b"x" * 200, b"y/" + b"z" * 240),
)


async def test_odd_names_and_large_contents_come_out_byte_for_byte(box: Box) -> None:
    for number, name in enumerate(ODD):
        path = box.folder / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0\xff%d\r\n" % number * 1000)
    (box.folder / "large").write_bytes(os.urandom(3_000_000))
    (box.folder / ("l" * 150)).symlink_to("t" * 150)

    outcome = await box.out()

    found = await files(box.shadow, outcome.result)
    for number, name in enumerate(ODD):
        assert found[os.fsdecode(name)] == ("100644", b"\0\xff%d\r\n" % number * 1000)
    assert found["large"][1] == (box.folder / "large").read_bytes()
    assert found["l" * 150] == ("120000", b"t" * 150)
    assert {finding.path for finding in outcome.findings} == {b"new\nline", b"\x1b[31m"}


async def test_commits_come_out_with_what_was_not_committed(box: Box, user: Git) -> None:
    box.sh("git checkout -qb work; echo 1 >new; git add new; git commit -qm one; echo 2 >new")

    outcome = await box.out()

    assert outcome.commits is not None
    assert outcome.commits.head is not None
    assert outcome.commits.branch == "refs/heads/work"
    assert await box.shadow.ref("r", "head") == outcome.commits.head
    assert (await box.shadow.git("log", "--format=%s", outcome.commits.head)).decode().split() == ["one", "first"]
    assert (await files(box.shadow, outcome.commits.head))["new"] == ("100644", b"1\n")
    assert (await files(box.shadow, outcome.result))["new"] == ("100644", b"2\n")


async def test_a_history_that_was_thrown_away_does_not_matter(box: Box) -> None:
    box.sh("rm -rf .git; git init -q; echo 1 >new; git add -A; git commit -qm all")

    outcome = await box.out()

    assert await changed(box, outcome.result) == ["A new"]
    assert outcome.commits is not None
    assert outcome.commits.head is not None


@pytest.mark.parametrize(
    "script",
    ["rm -rf .git", "rm -rf .git; ln -s /etc .git", "rm -rf .git; echo gitdir: /nowhere >.git", "rm -rf .git/objects"],
)
async def test_a_git_that_is_destroyed_costs_the_commits_alone(box: Box, script: str) -> None:
    box.sh(f"echo A >a; {script}")

    outcome = await box.out()

    assert await changed(box, outcome.result) == ["M a"]
    assert outcome.commits is not None
    assert outcome.commits.head is None


async def test_ignored_files_stay_in_the_box(work: Path, user: Git, box: Box) -> None:
    box.sh("mkdir -p out modules/x; echo 1 >out/new; echo 2 >modules/x/y; echo modules >.gitignore")

    outcome = await box.out()

    assert await changed(box, outcome.result) == ["A .gitignore", "A out/new"]
    assert outcome.ignored == 1
    assert outcome.is_whole


async def test_an_agent_can_not_have_a_file_carried_that_was_ignored(work: Path, user: Git, box: Box) -> None:
    box.shadow.git_dir.joinpath("info/exclude").write_text(".env\n")
    box.sh("echo secret >.env; echo '!.env' >.gitignore")

    outcome = await box.out()

    assert await changed(box, outcome.result) == ["A .gitignore"]
    assert outcome.ignored == 1


async def test_an_ignored_file_that_was_there_is_told_if_it_changed(box: Box) -> None:
    box.shadow.git_dir.joinpath("info/exclude").write_text("*.log\n")
    for name in ("same.log", "changed.log", "deleted.log"):
        (box.folder / name).write_text("1")
    await box.remember()
    box.sh("echo 2 >changed.log; rm deleted.log")

    outcome = await box.out()

    assert await changed(box, outcome.result) == []
    deleted, changed_ = Finding("ignored file deleted", b"deleted.log"), Finding("ignored file changed", b"changed.log")
    assert set(outcome.findings) == ({deleted, changed_} if box.before[b"a"] else {deleted})


async def test_what_is_no_file_is_told(box: Box) -> None:
    box.sh("mkfifo pipe; ln -s sub/../a in; echo x >Sub; ln -s a .gitmodules; git init -q nested; echo 1 >nested/f")
    (box.folder / "suid").write_text("x")
    (box.folder / "suid").chmod(0o4755)

    outcome = await box.out()

    assert {(found.kind, found.path) for found in outcome.findings} == {
        ("FIFO" if box.before[b"a"] else "no file", b"pipe"),
        ("refused name", b".gitmodules"),
        ("nested repository", b"nested"),
        ("setuid", b"suid"),
        ("differs in case only", b"Sub"),
    }


async def test_hard_links_are_two_files(box: Box) -> None:
    box.sh("echo 1 >one; ln one two; ln a three")

    outcome = await box.out()

    found = await files(box.shadow, outcome.result)
    assert found["one"] == found["two"] == ("100644", b"1\n")
    assert found["three"] == ("100644", b"a\n")
    assert outcome.is_whole


async def test_what_its_owner_can_not_read_is_not_deleted(box: Box) -> None:
    box.sh("echo A >a; chmod 000 a sub")

    outcome = await box.out()

    assert await changed(box, outcome.result) == ["M a"]


async def test_a_box_without_files_is_not_believed(box: Box) -> None:
    box.sh("rm -rf a sub link")

    with pytest.raises(WorkspaceError, match="no file any more"):
        await box.out()
    assert await box.shadow.ref("r", "result") is None

    outcome = await box.out(may_be_empty=True)
    assert await changed(box, outcome.result) == ["D a", "D link", "D sub/b"]
