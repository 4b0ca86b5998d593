"""The work of a run as a branch: right entries, nothing run, nothing moved that was not asked for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from container_runner.errors import ConfigError, ConflictError, WorkspaceError
from container_runner.workspace.branch import Branched
from container_runner.workspace.changes import Changes
from tests.workspace.scene import FILES, RUN, changes_of, commit, git, look, make_folder, ran, write

pytestmark = pytest.mark.anyio


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "work", FILES)


def edit_and_commit(box: Path) -> None:
    write(box, {"committed": "1\n"})
    commit(box, "by the agent")
    write(box, {"left": "2\n"})
    (box / "b").unlink()


async def test_a_branch_has_the_commits_and_the_rest_in_one_more(work: Path, state: Path) -> None:
    changes = await changes_of(work, state, edit_and_commit)
    before = look(work)

    made = await changes.branch("agent/fix")

    assert git(work, "log", "--format=%s", "agent/fix").splitlines() == [
        f"What run {RUN} had not committed", "by the agent", "first"
    ]  # fmt: skip
    assert git(work, "diff", "--name-status", "main", "agent/fix").splitlines() == ["D\tb", "A\tcommitted", "A\tleft"]
    assert made == Branched(name="agent/fix", commit=git(work, "rev-parse", "agent/fix").strip())
    after = look(work)
    new = {name for name in after if name not in before}
    assert {name: facts for name, facts in after.items() if name not in new} == before
    assert new == {".git/refs/heads/agent", ".git/refs/heads/agent/fix"}
    assert not (work / ".git/FETCH_HEAD").exists()
    git(work, "fsck", "--strict")


async def test_one_that_committed_all_gets_no_commit_of_ours(work: Path, state: Path) -> None:
    def edit(box: Path) -> None:
        write(box, {"x": "x\n"})
        commit(box, "all of it")

    changes = await changes_of(work, state, edit)

    made = await changes.branch("fix")

    assert made.commit == changes.head
    assert git(work, "log", "--format=%s", "fix").splitlines() == ["all of it", "first"]


async def test_what_the_user_has_not_committed_is_not_in_it(work: Path, state: Path) -> None:
    write(work, {"mine": "mine\n", "sub/c": "my edit\n"})
    changes = await changes_of(work, state, lambda box: write(box, {"x": "x\n"}))

    await changes.branch("fix")

    assert git(work, "diff", "--name-status", "main", "fix").splitlines() == ["A\tx"]


async def test_asked_for_again_it_is_the_same(work: Path, state: Path) -> None:
    changes = await changes_of(work, state, edit_and_commit)

    assert (
        (await changes.branch("fix")).commit
        == (await changes.branch("fix")).commit
        == (await changes.branch("b")).commit
    )


async def test_a_branch_is_moved_forward_and_never_aside(work: Path, state: Path) -> None:
    git(work, "branch", "behind")
    changes = await changes_of(work, state, edit_and_commit)
    made = await changes.branch("behind")
    assert git(work, "rev-parse", "behind").strip() == made.commit

    git(work, "checkout", "-q", "behind")
    write(work, {"moved": "on\n"})
    commit(work, "the user's")
    git(work, "checkout", "-q", "main")
    with pytest.raises(ConflictError, match="other commits"):
        await changes.branch("behind")
    with pytest.raises(ConflictError, match="checked out"):
        await changes.branch("main")
    assert git(work, "log", "-1", "--format=%s", "behind") == "the user's\n"


@pytest.mark.parametrize("name", ["", "-x", "a b", "a..b", "a/", "x.lock", "a//b", "@{", "a\0b", "refs/heads/\n"])
async def test_what_can_be_no_name_is_refused(work: Path, state: Path, name: str) -> None:
    changes = await changes_of(work, state, edit_and_commit)

    with pytest.raises(ConfigError, match="NAME"):
        await changes.branch(name)


async def test_a_folder_without_git_has_no_branches(tmp_path: Path, state: Path) -> None:
    changes = await changes_of(make_folder(tmp_path / "plain", FILES, is_repository=False), state, edit_nothing)

    with pytest.raises(WorkspaceError, match="no repository"):
        await changes.branch("fix")


def edit_nothing(box: Path) -> None:
    """A run that did nothing."""


async def test_nothing_of_the_repository_is_run(work: Path, state: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "ran"
    hooks = work / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("reference-transaction", "post-commit", "post-merge", "pre-auto-gc", "post-checkout", "update"):
        (hooks / name).write_text(f"#!/bin/sh\necho {name} >>{evidence}\n")
        (hooks / name).chmod(0o755)
    git(work, "config", "core.fsmonitor", f"touch {evidence}; true")
    git(work, "config", "gc.auto", "1")
    evidence.unlink(missing_ok=True)
    changes = await changes_of(work, state, lambda box: write(box, {"x": "x\n"}))

    await changes.branch("fix")

    assert not evidence.exists()
    assert git(work, "rev-parse", "--verify", "fix", ok=(0,))


async def test_a_filter_does_not_run_and_its_files_are_told(work: Path, state: Path, tmp_path: Path) -> None:
    write(work, {".gitattributes": "*.bin filter=big\n"})
    for command in ("clean", "smudge"):
        git(work, "config", f"filter.big.{command}", f"echo {command} >>{tmp_path}/ran; echo pointer")
    write(work, {"data.bin": "content\n"})
    commit(work)
    (tmp_path / "ran").unlink()
    (work / "data.bin").write_text("content\n")
    changes = await changes_of(work, state, lambda box: write(box, {"data.bin": "other content\n", "x": "x\n"}))

    made = await changes.branch("fix")

    assert not (tmp_path / "ran").exists()
    assert made.left_out == (b"data.bin",)
    assert git(work, "show", "fix:data.bin") == "pointer\n"
    assert git(work, "show", "fix:x") == "x\n"
    await changes.apply()
    assert (work / "data.bin").read_text() == "other content\n"


@pytest.mark.parametrize("how", ["attributes", "configuration"])
async def test_line_endings_are_kept_as_git_keeps_them(work: Path, state: Path, how: str) -> None:
    if how == "attributes":
        write(work, {".gitattributes": "*.txt text eol=crlf\n*.raw -text\n"})
    else:
        write(work, {".gitattributes": "*.raw -text\n"})
        git(work, "config", "core.autocrlf", "true")
    (work / "w.txt").write_bytes(b"one\r\ntwo\r\n")
    (work / "w.raw").write_bytes(b"one\r\n")
    commit(work)
    assert git(work, "show", "HEAD:w.txt") == "one\ntwo\n"

    def edit(box: Path) -> None:
        (box / "w.txt").write_bytes(b"one\r\ntwo\r\nthree\r\n")
        (box / "w.raw").write_bytes(b"one\r\ntwo\r\n")
        (box / "picture.txt" if how == "configuration" else box / "p.raw").write_bytes(b"\0\r\n")

    changes = await changes_of(work, state, edit)

    await changes.branch("fix")

    assert git(work, "show", "fix:w.txt") == "one\ntwo\nthree\n"
    assert git(work, "show", "fix:w.raw") == "one\r\ntwo\r\n"
    assert git(work, "show", "fix:picture.txt" if how == "configuration" else "fix:p.raw") == "\0\r\n"
    await changes.apply()
    assert (work / "w.txt").read_bytes() == b"one\r\ntwo\r\nthree\r\n"


async def test_a_submodule_stays_the_entry_that_it_is(work: Path, state: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "library", {"lib.c": "1\n"})
    git(work, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "library"), "lib")
    commit(work, "a submodule")
    make_folder(work / "inner", {"i": "i\n"})  # a repository that is no submodule
    changes = await changes_of(work, state, lambda box: write(box, {"lib/lib.c": "2\n", "inner/i": "I\n", "x": "x\n"}))

    made = await changes.branch("fix")

    assert made.left_out == (b"inner/i", b"lib/lib.c")
    assert git(work, "ls-tree", "fix", "lib") == git(work, "ls-tree", "main", "lib")
    assert git(work, "diff", "--name-status", "main", "fix").splitlines() == ["A\tx"]
    await changes.apply()
    assert (work / "lib/lib.c").read_text() == "2\n"


@pytest.mark.parametrize("kind", ["empty", "shallow", "worktree", "sha256", "detached"])
async def test_repositories_of_every_kind(tmp_path: Path, state: Path, kind: str) -> None:
    origin = make_folder(tmp_path / "origin", FILES)
    write(origin, {"more": "more\n"})
    commit(origin)
    work = tmp_path / "kind"
    if kind == "empty":
        git(tmp_path, "init", "-q", str(work))
    elif kind == "shallow":
        git(tmp_path, "clone", "-q", "--depth=1", f"file://{origin}", str(work))
    elif kind == "worktree":
        git(origin, "worktree", "add", "-q", str(work))
    elif kind == "sha256":
        git(tmp_path, "init", "-q", "--object-format=sha256", str(work))
        write(work, FILES)
        commit(work)
    else:
        work = origin
        git(work, "checkout", "-q", "--detach")

    def edit(box: Path) -> None:
        if kind == "worktree":  # the copy's .git would be the original's
            write(box, {"left": "2\n"})
        else:
            write(box, {"committed": "1\n"})
            commit(box, "by the agent")
            write(box, {"left": "2\n"})

    changes = await changes_of(work, state, edit)

    await changes.branch("fix")

    assert git(work, "show", "fix:left") == "2\n"
    assert kind == "worktree" or git(work, "show", "fix:committed") == "1\n"
    git(work, "fsck")
    shutil.rmtree(state)  # the branch stands by itself
    git(work, "log", "-p", "fix")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can write what is another's")
async def test_what_root_writes_into_a_repository_belongs_to_whose_that_is(work: Path, state: Path) -> None:
    for path in [work, *work.rglob("*")]:
        os.chown(path, 1234, 1235, follow_symlinks=False)
    changes = await Changes.load(await ran(work, state, lambda box: write(box, {"x": "x\n"})), RUN)

    await changes.branch("agent/fix")

    assert {path.lstat().st_uid for path in (work / ".git").rglob("*")} == {1234}
