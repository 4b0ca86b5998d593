"""Streams that no honest box sends: what they hold is refused and told, or nothing of them is taken over."""

from __future__ import annotations

import os
import subprocess
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import pytest

from container_runner.errors import WorkspaceError
from container_runner.stream.pipe import Pipe
from container_runner.workspace import manifest as manifest_module
from container_runner.workspace import way_out
from container_runner.workspace.commits import COMMITS
from container_runner.workspace.findings import Finding
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.tar import END, file, member, padding
from container_runner.workspace.way_out import Outcome, receive
from tests.workspace.conftest import Git, files

pytestmark = pytest.mark.anyio

FACTS = b"%s 1 %d 644 1.0000000000 1.0000000000"


def block(text: str) -> bytes:
    return b"container-runner: %s" % text.encode().ljust(493) + b"\n"


def record(path: bytes, kind: bytes = b"f", size: int = 1) -> bytes:
    return b"./%s\0%s\0" % (path, FACTS % (kind, size))


def manifest(*records: bytes, code: int = 0) -> bytes:
    return b"facts\0%s/\0%d\0" % (b"".join(records), code)


class Stream:
    """Stands in for a `Pipe`: says what it was given, whatever it is asked."""

    def __init__(self, chunks: Iterable[bytes], code: int = 0) -> None:
        self._chunks = iter(chunks)
        self._code = code
        self.asked = b""

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        try:
            return next(self._chunks)
        except StopIteration:
            raise StopAsyncIteration from None

    def send(self, data: bytes, *, last: bool = False) -> None:
        self.asked += data

    async def wait(self) -> int:
        return self._code


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


async def take(shadow: Shadow, *chunks: bytes, code: int = 0, asks: bytes | None = None) -> Outcome:
    """Receive a stream that is honest but for its content: a manifest, then what is asked for and its end."""
    stream = Stream(chunks, code)
    outcome = await receive(shadow, "r", cast("Pipe", stream))
    assert asks is None or stream.asked == asks
    assert list(shadow.folder.glob("quarantine-*")) == []
    return outcome


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

    outcome = await take(shadow, records + SAME + END + block("end 0"), asks=b"11\n./a\0./keep\0" + b"0\n")

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
    monkeypatch.setattr(way_out, "FILE_LIMIT", 100)
    monkeypatch.setattr(way_out, "TOTAL_LIMIT", 150)
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
    assert list(shadow.folder.glob("quarantine-*")) == []


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
    monkeypatch.setattr(way_out, "TOTAL_LIMIT", 10_000_000)
    monkeypatch.setattr(way_out, "BYTES_LIMIT", 10_000_000)
    monkeypatch.setattr(manifest_module, "NAMES_LIMIT", 50_000)
    tracemalloc.start()

    with pytest.raises(WorkspaceError):
        await receive(shadow, "r", cast("Pipe", Stream(endless(*ENDLESS[what]))))

    assert tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()


PACKS = {
    "an honest commit": ("echo b >b; git add b; git commit -qm b", None),
    ".git in a tree": ("tree '040000 tree %s\\t.git'", "hasDotgit"),
    ".. in a tree": ("tree '040000 tree %s\\t..'", "hasDotdot"),
    ".gitmodules with an option for a url": (
        "printf '[submodule \"x\"]\\n path=x\\n url=-u./payload\\n' >.gitmodules; git add -A; git commit -qm g",
        "gitmodulesUrl",
    ),
    ".gitmodules with a path for a name": (
        "printf '[submodule \"../../x\"]\\n path=x\\n url=https://e/x\\n' >.gitmodules; git add -A; git commit -qm g",
        "gitmodulesName",
    ),
}
TREE = """
tree() {
  blob=$(echo x | git hash-object -w --stdin)
  inner=$(printf '100644 blob %s\\tconfig\\n' $blob | git mktree)
  git update-ref HEAD $(git commit-tree -p HEAD -m e $(printf "$1\\n" $inner | git mktree))
}
"""


@pytest.fixture
async def committed(work: Path, state: Path) -> Shadow:
    """Of `work`, with a run "r"."""
    made = await Shadow.open(work, state)
    await made.start("r")
    return made


def out_of(box: Path, user: str) -> tuple[str, bytes]:
    """HEAD of a box, and the whole way out of it if nothing but commits was changed."""
    script = f'list() {{ :; }}\n{COMMITS}\ncd "$1" && commits "$2"'
    said = subprocess.run(["sh", "-c", script, "sh", str(box), user], capture_output=True, check=True).stdout
    return said.split(b" ")[2].decode(), said


async def take_commits(shadow: Shadow, commits: bytes) -> Outcome:
    names = {b"a": b"a\n", b"sub/b": b"b\n"}
    records = [record(name, size=2) for name in names] + [record(b"link", b"l")]
    sent = b"".join(file(b"./" + name, content) for name, content in names.items())
    link = member(b"./link", kind=b"2", link=b"a")
    return await take(shadow, manifest(*records) + sent + link + END + block("end 0") + commits)


def agent(box: Path, script: str) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(box.parent / "home")}
    subprocess.run(["sh", "-ec", TREE + script], cwd=box, env=env, check=True, capture_output=True)


@pytest.mark.parametrize("what", PACKS)
async def test_commits_that_no_git_would_make_are_refused(committed: Shadow, work: Path, user: Git, what: str) -> None:
    script, reason = PACKS[what]
    user("clone", "-q", str(work), "../box")
    box = work.parent / "box"
    agent(box, script)
    head, said = out_of(box, user("rev-parse", "HEAD").strip())

    outcome = await take_commits(committed, said)

    assert outcome.commits is not None
    assert await committed.ref("r", "head") == outcome.commits.head == (head if reason is None else None)
    assert (reason or "") in (outcome.commits.refused or "")
    assert await committed.ref("r", "result") == outcome.result


@pytest.mark.parametrize("what", ["cut off", "another head", "garbage", "no end"])
async def test_a_pack_that_is_damaged(committed: Shadow, work: Path, user: Git, what: str) -> None:
    user("clone", "-q", str(work), "../box")
    box = work.parent / "box"
    (box / "b").write_text("b")
    user("add", "b", at=box)
    user("commit", "-qm", "b", at=box)
    head, said = out_of(box, user("rev-parse", "HEAD").strip())
    first, pack, last = said[:512], said[512:-512], said[-512:]
    damaged = {
        "cut off": first + pack[:-30] + last,
        "another head": block(f"head {'f' * 40} refs/heads/main") + pack + last,
        "garbage": first + os.urandom(1000) + last,
        "no end": first + pack,
    }

    if what == "no end":
        with pytest.raises(WorkspaceError, match="cut off"):
            await take_commits(committed, damaged[what])
        assert await committed.ref("r", "result") is None
    else:
        outcome = await take_commits(committed, damaged[what])
        assert outcome.commits is not None
        assert outcome.commits.refused
        assert await committed.ref("r", "result") == outcome.result
    assert await committed.ref("r", "head") is None
    with pytest.raises(WorkspaceError):
        await committed.git("cat-file", "-e", head)
