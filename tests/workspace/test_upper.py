"""What an overlay has written, read in its upper folder: made here by hand, as the kernel makes it.

tests/integration/test_carried.py does the same with real overlays.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from container_runner.errors import WorkspaceError
from container_runner.workspace.findings import Finding
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.upper import UnclearError, Upper, marks_of, touches_git
from container_runner.workspace.way_out import Outcome, receive
from tests.workspace.conftest import Git, files

pytestmark = pytest.mark.anyio

MARKS = "user.overlay."


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    folder = tmp_path / "upper"
    folder.mkdir()
    return folder


@pytest.fixture
async def shadow(work: Path, state: Path) -> Shadow:
    """That of a repository with tracked and ignored files, after the start of run "r"."""
    (work / ".gitignore").write_text("*.log\n")
    for name in ("old/x", "old/in/y", "kept/z", "made/1.log", "made/2.log"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name)
    shadow = await Shadow.open(work, state)
    await shadow.start("r")
    return shadow


def write(upper: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = upper / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))


def mark(folder: Path, name: str, value: bytes = b"y") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.setxattr(folder, MARKS + name, value)


async def take(shadow: Shadow, upper: Path, *, may_be_empty: bool = False) -> Outcome:
    with Upper.open(str(upper), MARKS) as opened:
        return await receive(shadow, "r", opened, overlay=True, may_be_empty=may_be_empty)


async def changed(shadow: Shadow, outcome: Outcome) -> list[str]:
    words = ("diff-tree", "-r", "--no-renames", "--name-status", f"{outcome.result}^", outcome.result)
    return sorted(" ".join(line.split("\t")) for line in (await shadow.git(*words)).decode().splitlines())


async def test_nothing_was_written(shadow: Shadow, upper: Path) -> None:
    outcome = await take(shadow, upper)

    assert await changed(shadow, outcome) == []
    assert (outcome.findings, outcome.commits, outcome.is_whole) == ((), None, True)


async def test_what_was_written_and_what_was_deleted(shadow: Shadow, upper: Path) -> None:
    write(upper, a="A\n", sub__new="1", kept__deep__er="2", **{"out.log": "3"})
    (upper / "a").chmod(0o755)
    (upper / "sub/b").symlink_to("../a")
    whiteout(upper / "link")
    whiteout(upper / "old/in")

    outcome = await take(shadow, upper)

    assert await changed(shadow, outcome) == [
        "A kept/deep/er",
        "A sub/new",
        "D link",
        "D old/in/y",
        "M a",
        "T sub/b",
    ]
    found = await files(shadow, outcome.result)
    assert (found["a"], found["sub/b"]) == (("100755", b"A\n"), ("120000", b"../a"))
    assert (outcome.findings, outcome.ignored) == ((), 1)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_fifty_thousand_files_above_a_history_that_is_not_read(
    tmp_path: Path, state: Path, user: Git, upper: Path
) -> None:
    """However long the history is, it costs nothing: here it is not even there."""
    names = [f"{number // 100}/{number}" for number in range(50_000)]
    entries = "".join(f"M 100644 :1 {name}\n" for name in names)
    user("init", "-q", "-b", "main")
    stream = f"blob\nmark :1\ndata 2\n1\ncommit refs/heads/first\ncommitter U <u@x> 0 +0000\ndata 0\n{entries}"
    user("fast-import", "--quiet", stdin=stream.encode())
    head = user("cat-file", "commit", "first").replace("\n", f"\nparent {'1' * 40}\n", 1)
    made = user("hash-object", "-t", "commit", "-w", "--literally", "--stdin", stdin=head.encode()).strip()
    user("update-ref", "HEAD", made)
    user("read-tree", "HEAD")
    work = tmp_path / "work"
    (work / "file").write_text("1\n")
    for number in range(500):
        (work / str(number)).mkdir()
    for name in names:
        os.link(work / "file", work / name)
    (work / "file").unlink()

    shadow = await Shadow.open(work, state)
    await shadow.start("r")
    (work / "0/0").unlink()
    (work / "0/0").write_text("2\n")
    await shadow.start("r")
    write(upper, new="1\n", **{"0__1": "3\n"})
    whiteout(upper / "7")
    changes = await changed(shadow, await take(shadow, upper))

    assert changes == sorted(["A new", "M 0/1", *(f"D 7/{number}" for number in range(700, 800))])
    assert (await shadow.ref("r", "user"), await shadow.git("show", "refs/container-runner/r/base:0/0")) == (
        made,
        b"2\n",
    )


async def test_through_an_opaque_folder_nothing_shows(shadow: Shadow, upper: Path) -> None:
    """As `rm -rf old; mkdir old`, and one in the place of a file, which the kernel marks likewise."""
    mark(upper / "old", "opaque")
    write(upper, old__n="1", a__n="2")
    mark(upper / "a", "opaque")

    outcome = await take(shadow, upper)

    assert await changed(shadow, outcome) == ["A a/n", "A old/n", "D a", "D old/in/y", "D old/x"]


async def test_a_file_in_the_place_of_a_folder(shadow: Shadow, upper: Path) -> None:
    write(upper, old="1")

    assert await changed(shadow, await take(shadow, upper)) == ["A old", "D old/in/y", "D old/x"]


async def test_what_was_only_touched_is_no_change(shadow: Shadow, upper: Path) -> None:
    write(upper, a="a\n")

    assert await changed(shadow, await take(shadow, upper)) == []


async def test_ignored_files_that_were_there_are_told(shadow: Shadow, upper: Path) -> None:
    write(upper, **{"made__1.log": "agent"})
    whiteout(upper / "made/2.log")

    outcome = await take(shadow, upper)

    kinds = {"ignored file changed": b"made/1.log", "ignored file deleted": b"made/2.log"}
    assert set(outcome.findings) == {Finding(kind, path) for kind, path in kinds.items()}


async def test_what_is_no_file_is_told_and_not_waited_for(shadow: Shadow, upper: Path) -> None:
    os.mkfifo(upper / "pipe")
    (upper / "nested/.git").mkdir(parents=True)
    (upper / "nested/.git/config").write_text("[core]\nfsmonitor = touch /ran\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(upper / "s"))
        outcome = await take(shadow, upper)

    assert {(finding.kind, finding.path) for finding in outcome.findings} == {
        ("FIFO", b"pipe"),
        ("socket", b"s"),
        ("nested repository", b"nested"),
    }
    assert await changed(shadow, outcome) == []


async def test_what_its_owner_can_not_read_is_read(shadow: Shadow, upper: Path) -> None:
    write(upper, sub__new="1")
    (upper / "sub/new").chmod(0)
    (upper / "sub").chmod(0)

    outcome = await take(shadow, upper)

    assert await changed(shadow, outcome) == ["A sub/new"]
    assert outcome.is_whole


async def test_that_all_was_deleted_is_not_believed(shadow: Shadow, upper: Path) -> None:
    for name in ("a", "link", "sub", "old", "kept", ".gitignore"):
        whiteout(upper / name)

    with pytest.raises(WorkspaceError, match="no file any more"):
        await take(shadow, upper)

    outcome = await take(shadow, upper, may_be_empty=True)
    assert await files(shadow, outcome.result) == {}


def swap_folder(upper: Path, victim: Path) -> None:
    (upper / "d").rename(upper / "moved")
    (upper / "d").symlink_to(victim)


def swap_file(upper: Path, victim: Path) -> None:
    (upper / "d/f").unlink()
    (upper / "d/f").symlink_to(victim / "f")


def swap_for_pipe(upper: Path, victim: Path) -> None:
    (upper / "d/f").unlink()
    os.mkfifo(upper / "d/f")


@pytest.mark.parametrize("swap", [swap_folder, swap_file, swap_for_pipe])
async def test_an_agent_that_is_still_at_it_leads_nowhere(
    upper: Path, tmp_path: Path, swap: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    write(victim, f="secret")
    write(upper, d__f="1")
    said = b""
    with Upper.open(str(upper), MARKS) as opened:
        async for chunk in opened:
            said += chunk
        swap(upper, victim)
        opened.send(b"6\n./d/f\0")
        async for chunk in opened:
            said += chunk

    assert b"./d/f\0f " in said
    assert b"secret" not in said
    assert (b"container-runner: end 1" in said) == (swap is not swap_file)  # a link comes as a link


@pytest.mark.parametrize(("name", "value"), [("redirect", b"/old"), ("opaque", b"x")])
async def test_a_mark_that_is_not_understood_is_left_to_the_box(
    shadow: Shadow, upper: Path, name: str, value: bytes
) -> None:
    mark(upper / "new", name, value)

    with pytest.raises(UnclearError):
        await take(shadow, upper)
    assert await shadow.ref("r", "result") is None


def test_whose_marks_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert marks_of(is_rootless=True) == "user.overlay."
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert marks_of(is_rootless=False) == "trusted.overlay."
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert marks_of(is_rootless=False) is None


@pytest.mark.parametrize(
    ("names", "touched"), [([], False), (["index", "objects"], False), (["HEAD"], True), (["index", "refs"], True)]
)
def test_whether_something_may_have_been_committed(tmp_path: Path, names: list[str], touched: bool) -> None:
    for name in names:
        write(tmp_path / "git", **{name: ""})

    assert touches_git(str(tmp_path / "git")) == touched


def test_what_is_in_the_place_of_a_repository_is_looked_at(tmp_path: Path) -> None:
    write(tmp_path, git="gitdir: elsewhere")

    assert touches_git(str(tmp_path / "git"))
