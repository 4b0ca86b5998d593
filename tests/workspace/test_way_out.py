"""The way out of a box: with real programs on its side, and with streams that no honest box sends.

What these hold is refused and told, or nothing of them is taken over.
"""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from container_runner.errors import WorkspaceError
from container_runner.stream.pipe import Pipe
from container_runner.workspace import manifest as manifest_module
from container_runner.workspace import work as work_module
from container_runner.workspace.findings import Finding
from container_runner.workspace.git import _WHO
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.tar import END, file, member, padding
from container_runner.workspace.way_out import receive
from tests.workspace.conftest import Box, Git, files
from tests.workspace.streams import Stream, block, manifest, record, take

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
    box.sh("mkfifo pipe; echo x >Sub; ln -s a .gitmodules; git init -q nested; echo 1 >nested/f")
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


def copy_up(path: Path, content: str) -> None:
    """Change a file as an overlay does: it becomes another one, above the one below."""
    path.unlink()
    path.write_text(content)


async def test_over_an_overlay_only_what_the_agent_has_changed_comes_out(
    work: Path, state: Path, tmp_path: Path, user: Git, programs: str
) -> None:
    """The files that show through are played by hard links: both names tell the same."""
    (work / ".gitignore").write_text("*.log\n")
    for name in ("by-user", "by-agent", "by-both", "gone-by-user", "gone-by-agent", "same.log", "agent.log"):
        (work / name).write_text("1")
    shadow = await Shadow.open(work, state)
    await shadow.start("r")
    copy_up(work / "by-user", "2")
    copy_up(work / "by-both", "user")
    (work / "gone-by-user").unlink()
    (work / "new-by-user").write_text("2")
    folder = tmp_path / "merged"
    shutil.copytree(work, folder, symlinks=True, copy_function=os.link)
    for name in ("by-agent", "by-both", "agent.log"):
        copy_up(folder / name, "agent")
    (folder / "gone-by-agent").unlink()
    (folder / "new-by-agent").write_text("3")

    outcome = await (box := Box(shadow, folder, os.environ["PATH"])).out(overlay=True)

    assert await changed(box, outcome.result) == ["A new-by-agent", "D gone-by-agent", "M by-agent", "M by-both"]
    assert outcome.findings == (Finding("ignored file changed", b"agent.log"),)

    if programs != os.environ["PATH"]:  # which tells no facts: then what the user did counts as the agent's
        outcome = await (box := Box(shadow, folder, programs)).out(overlay=True)
        assert set(await changed(box, outcome.result)) >= {
            "A new-by-agent",
            "D gone-by-agent",
            "M by-agent",
            "M by-both",
        }
        assert outcome.findings == ()


async def test_a_box_without_files_is_not_believed(box: Box) -> None:
    box.sh("rm -rf a sub link")

    with pytest.raises(WorkspaceError, match="no file any more"):
        await box.out()
    assert await box.shadow.ref("r", "result") is None

    outcome = await box.out(may_be_empty=True)
    assert await changed(box, outcome.result) == ["D a", "D link", "D sub/b"]


@pytest.fixture
async def shadow(tmp_path: Path, state: Path) -> Shadow:
    """Of a folder without git, with the files `a` and `keep`, and a run "r"."""
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "a").write_text("a")
    (folder / "keep").write_text("k")
    made = await Shadow.open(folder, state)
    await made.start("r")
    return made


A = record(b"a")
KEEP = record(b"keep")
SAME = file(b"./a", b"a") + file(b"./keep", b"k")

REFUSED = [
    *(b".GIT/config", b".gIt", b"git~1/config", b"x/.git /hooks", b".git.", b".git. .", b".git::$INDEX_ALLOCATION/x"),
    *(b"../out", b"a/../../out", b"/etc/cron.d/x", b"x//y", b"x/./y", b"", b".", b".gi\xe2\x80\x8ct/config"),
    *(b"a\\..\\..\\b", b".git\\config", b"y" * 300, b"z/" * 3000 + b"z", b".container-runner-r/1"),
]


async def test_names_that_are_git_s_or_lead_elsewhere_are_refused_and_told(shadow: Shadow) -> None:
    records = manifest(A, KEEP, *(record(name) for name in REFUSED))

    outcome = await take(shadow, records + SAME + END + block("end 0"), asks=b"11 -\n./a\0./keep\0")

    assert set(await files(shadow, outcome.result)) == {"a", "keep"}
    assert {finding.path for finding in outcome.findings} == set(REFUSED)
    assert {finding.kind for finding in outcome.findings} == {"refused name"}


@pytest.mark.parametrize(
    ("kind", "found"), [(b"p", "FIFO"), (b"s", "socket"), (b"c", "device"), (b"b", "device"), (b"l", "refused name")]
)
async def test_what_is_no_file_is_not_asked_for(shadow: Shadow, kind: bytes, found: str) -> None:
    name = b"x/.gitmodules" if kind == b"l" else b"x"

    outcome = await take(shadow, manifest(A, KEEP, record(name, kind)) + SAME + END + block("end 0"))

    assert outcome.findings == (Finding(found, name),)
    assert set(await files(shadow, outcome.result)) == {"a", "keep"}


async def test_a_hard_link_to_what_did_not_come_is_not_taken(shadow: Shadow) -> None:
    link = member(b"./h", kind=b"1", link=b"/etc/shadow")

    outcome = await take(shadow, manifest(A, KEEP, record(b"h")) + SAME + link + END + block("end 0"))

    assert outcome.findings == (Finding("hard link", b"h"),)
    assert not outcome.is_whole


async def test_a_device_in_place_of_a_file_is_not_taken(shadow: Shadow) -> None:
    device = member(b"./a", kind=b"3")

    outcome = await take(shadow, manifest(A, KEEP) + device + file(b"./keep", b"k") + END + block("end 0"))

    assert outcome.findings == (Finding("no file", b"a"),)
    assert (await files(shadow, outcome.result))["a"] == ("100644", b"a")


async def test_a_file_through_a_link_is_a_file_in_a_folder(shadow: Shadow) -> None:
    """No working tree is written, so a link can lead nothing anywhere."""
    records = manifest(A, KEEP, record(b"l", b"l"), record(b"l/x"))
    sent = SAME + member(b"./l", kind=b"2", link=b"/tmp") + file(b"./l/x", b"x") + END + block("end 0")

    outcome = await take(shadow, records + sent)

    assert set(await files(shadow, outcome.result)) == {"a", "keep", "l/x"}


async def test_what_has_become_too_large_is_told(shadow: Shadow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "FILE_LIMIT", 100)
    monkeypatch.setattr(work_module, "TOTAL_LIMIT", 150)
    records = manifest(
        A, KEEP, record(b"big", size=101), record(b"one", size=90), record(b"two", size=90), record(b"grown")
    )
    sent = SAME + file(b"./one", b"1" * 90) + file(b"./grown", b"g" * 101) + END + block("end 0")

    outcome = await take(shadow, records + sent)

    assert set(await files(shadow, outcome.result)) == {"a", "keep", "one"}
    assert set(outcome.findings) == {
        Finding("too large", b"big"),
        Finding("too large with the others", b"two"),
        Finding("too large", b"grown"),
    }
    assert not outcome.is_whole


async def test_a_file_that_can_not_be_read_stays_as_it_was(shadow: Shadow) -> None:
    outcome = await take(shadow, manifest(A, KEEP) + file(b"./keep", b"K") + END + block("end 123"))

    assert await files(shadow, outcome.result) == {"a": ("100644", b"a"), "keep": ("100644", b"K")}
    assert outcome.findings == (Finding("unreadable", b"a"),)


async def test_a_folder_that_can_not_be_read_is_not_deleted(state: Path, tmp_path: Path) -> None:
    (tmp_path / "plain/sub").mkdir(parents=True)
    for name in ("a", "sub/x", "gone"):
        (tmp_path / "plain" / name).write_text("a")
    shadow = await Shadow.open(tmp_path / "plain", state)
    await shadow.start("r")

    outcome = await take(shadow, manifest(A, record(b"sub", b"d"), code=1) + file(b"./a", b"a") + END + block("end 0"))

    assert set(await files(shadow, outcome.result)) == {"a", "sub/x"}
    assert outcome.findings == (Finding("unreadable", b"sub"),)


async def test_a_find_that_failed_deletes_nothing(shadow: Shadow) -> None:
    outcome = await take(shadow, manifest(A, code=1) + file(b"./a", b"a") + END + block("end 0"))

    assert set(await files(shadow, outcome.result)) == {"a", "keep"}
    assert outcome.findings == (Finding("not seen", b"keep"),)


HONEST = manifest(A, KEEP) + SAME + END + block("end 0")


@pytest.mark.parametrize("cut", [1, 512, 513, 1024, 1536, 2048, 3000, len(HONEST) - 20, len(HONEST) - 1])
async def test_a_stream_that_is_cut_off_is_not_taken_over(shadow: Shadow, cut: int) -> None:
    with pytest.raises(WorkspaceError):
        await take(shadow, HONEST[:-cut])

    assert await shadow.ref("r", "result") is None
    assert list(shadow.folder.glob("scratch-*")) == []


async def test_a_stream_whose_process_failed_is_not_taken_over(shadow: Shadow) -> None:
    with pytest.raises(WorkspaceError, match="cut off"):
        await take(shadow, HONEST, code=137)

    assert await shadow.ref("r", "result") is None


async def test_the_honest_stream_is_taken_however_it_is_cut_into_chunks(shadow: Shadow) -> None:
    for size in (1, 7, 511, 100_000):
        outcome = await take(shadow, *(HONEST[at : at + size] for at in range(0, len(HONEST), size)))
        assert set(await files(shadow, outcome.result)) == {"a", "keep"}


GARBAGE = {
    "no manifest": b"hello\0",
    "a path outside of the folder": b"facts\0/etc/passwd\0f 1 1 644 1.0 1.0\0/\0000\0",
    "garbage for tar": manifest(A, KEEP) + os.urandom(512 * 8),
    "a member that was not asked for": manifest(A, KEEP) + file(b"./ghost", b"1") + SAME + END + block("end 0"),
    "members in another order": manifest(A, KEEP) + file(b"./keep", b"k") + file(b"./a", b"a") + END + block("end 0"),
    "the same member twice": manifest(A, KEEP) + file(b"./a", b"1") + SAME + END + block("end 0"),
    "a member that is missing without a failure": manifest(A, KEEP) + file(b"./a", b"a") + END + block("end 0"),
    "a pax header": manifest(A, KEEP) + member(b"x", kind=b"x", size=10) + b"0" * 10 + padding(10) + SAME,
    "a size that is no number": manifest(A, KEEP) + b"./a".ljust(124, b"\0") + b"zzzzzzzzzzz\0" + bytes(376),
    "an endless long name": manifest(A, KEEP) + member(b"././@LongLink", kind=b"L", size=1 << 40) + bytes(4096),
    "more behind the end": HONEST + b"x",
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_is_not_taken_over(shadow: Shadow, what: str) -> None:
    with pytest.raises(WorkspaceError):
        await take(shadow, GARBAGE[what])

    assert await shadow.ref("r", "result") is None


def endless(start: bytes, chunk: bytes) -> Iterator[bytes]:
    yield start
    while True:
        yield chunk


ENDLESS = {
    "names": (b"facts\0", b"".join(record(b"x%d" % number) for number in range(5000))),
    "a name": (b"facts\0./", b"y" * 100_000),
    "zeros": (manifest(A, KEEP), bytes(512 * 200)),
    "a member of a terabyte": (manifest(A, KEEP) + member(b"./a", size=1 << 40), b"z" * 100_000),
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_what_has_no_end_is_given_up(shadow: Shadow, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(work_module, "TOTAL_LIMIT", 10_000_000)
    monkeypatch.setattr(work_module, "BYTES_LIMIT", 10_000_000)
    monkeypatch.setattr(manifest_module, "NAMES_LIMIT", 50_000)
    tracemalloc.start()

    with pytest.raises(WorkspaceError):
        await receive(shadow, "r", cast("Pipe", Stream(endless(*ENDLESS[what]))))

    assert tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()


async def test_a_box_is_let_go_when_all_of_it_has_come_and_not_before(shadow: Shadow) -> None:
    """The rest is done while it ends; if that fails, the work is still where it was."""
    result = shadow.git_dir / "refs/container-runner/r/result"
    called: list[bool] = []

    async def fetch(code: int, *more: bytes) -> None:
        parts = [manifest(A, KEEP), SAME + END + block("end 0"), *more]
        await receive(shadow, "r", cast("Pipe", Stream(parts, code)), on_end=lambda: called.append(result.exists()))

    for code, more in ((1, []), (0, [b"more"])):
        with pytest.raises(WorkspaceError):
            await fetch(code, *more)
    assert called == []

    await fetch(0)

    assert (called, result.exists()) == ([False], True)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_came_out_is_on_the_disk(
    work: Path, state: Path, box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What held it is removed then, and a machine may lose its power. Git by itself would leave that to the kernel."""
    told = tmp_path / "told"
    monkeypatch.setitem(_WHO, "GIT_TRACE2_EVENT", str(told))
    await box.shadow.start("q")
    box.sh("echo more >>a; git commit -qam more")

    await box.out(run="q")

    flushed: dict[str, int] = {}
    events = [json.loads(line) for line in told.read_text().splitlines()]
    names = {event["sid"]: event["name"] for event in events if event["event"] == "cmd_name"}
    for event in events:
        if event.get("key") == "fsync/hardware-flush":
            name = names[event["sid"]]
            flushed[name] = flushed.get(name, 0) + int(event["value"])
    assert flushed["commit-tree"] == 1  # base
    assert flushed["update-ref"] == 4  # base and user, result and head
    assert flushed["fast-import"] >= 1
    assert flushed["index-pack"] >= 1
