"""Commits that came out of a box, of git's own making and not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from container_runner.errors import WorkspaceError
from container_runner.workspace.commits import COMMITS
from container_runner.workspace.findings import Finding
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.tar import END, file, member
from container_runner.workspace.way_out import Outcome
from tests.workspace.conftest import Git
from tests.workspace.streams import block, manifest, record, take

pytestmark = pytest.mark.anyio

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
    ".gitmodules is a link": (
        "blob=$(printf a | git hash-object -w --stdin); "
        "tree=$(printf '120000 blob %s\\t.gitmodules\\n' $blob | git mktree); "
        "git update-ref HEAD $(git commit-tree -p HEAD -m g $tree)",
        "",
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
    assert (outcome.commits.refused is None) == (reason is None)
    assert outcome.findings == (() if reason is None else (Finding("commits refused", b".git"),))
    assert await committed.ref("r", "result") == outcome.result


async def test_a_gitlink_is_told(committed: Shadow, work: Path, user: Git) -> None:
    user("clone", "-q", str(work), "../box")
    agent(work.parent / "box", "git update-index --add --cacheinfo 160000,$(git rev-parse HEAD),mod; git commit -qm g")
    head, said = out_of(work.parent / "box", user("rev-parse", "HEAD").strip())

    outcome = await take_commits(committed, said)

    assert outcome.commits is not None
    assert outcome.commits.head == head
    assert outcome.findings == (Finding("gitlink", b"mod"),)


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
