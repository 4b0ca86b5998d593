"""The work of a run goes into the folder: all of it or nothing, whatever the folder has become."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from container_runner.errors import ConflictError
from container_runner.workspace.changes import Changes
from tests.workspace.scene import FILES, LINES, RUN, changes_of, commit, everything, git, look, make_folder, ran, write

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["git", "no git"])
def any_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_folder(tmp_path / "work", FILES, is_repository=request.param == "git")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "work", FILES)


async def test_all_changes_come(any_folder: Path, state: Path, tmp_path: Path) -> None:
    changes = await changes_of(any_folder, state, everything)
    wanted = make_folder(tmp_path / "wanted", FILES, is_repository=False)
    everything(wanted)

    applied = await changes.apply()

    assert {name: facts for name, facts in look(any_folder).items() if not name.startswith(".git")} == look(wanted)
    assert set(applied.paths) == {file.path for file in changes.files}
    assert applied.left_out == ()
    assert not (changes.shadow and list(changes.shadow.folder.glob("apply.json*")))
    assert (await changes.apply()).paths == ()


async def test_what_the_user_did_meanwhile_stays_and_is_merged(any_folder: Path, state: Path) -> None:
    changes = await changes_of(any_folder, state, everything)
    (any_folder / "a").write_text("one\n2\n3\n4\n5\n6\n7\n8\n")
    write(any_folder, {"mine": "mine\n"})

    await changes.apply()

    assert (any_folder / "a").read_text() == "one\n2\n3\n4\n5\n6\n7\neight\n"
    assert (any_folder / "mine").read_text() == "mine\n"
    assert not (any_folder / "b").exists()


@pytest.mark.parametrize("users", ["edit", "delete", "folder"])
async def test_where_both_changed_the_same_nothing_is_written(any_folder: Path, state: Path, users: str) -> None:
    changes = await changes_of(any_folder, state, everything)
    (any_folder / "a").unlink()
    if users == "edit":
        (any_folder / "a").write_text("1\n2\n3\n4\n5\n6\n7\nacht\n")
    elif users == "folder":
        write(any_folder, {"a/x": "x"})
    before = look(any_folder)

    with pytest.raises(ConflictError) as caught:
        await changes.apply()

    assert any(path.startswith(b"a") for path in caught.value.paths)
    assert "'a" in str(caught.value)
    assert caught.value.cli_exit_code == 3
    assert look(any_folder) == before


async def test_the_users_index_stays(work: Path, state: Path) -> None:
    (work / "staged").write_text("staged\n")
    git(work, "add", "staged")
    git(work, "rm", "-q", "--cached", "sub/c")
    changes = await changes_of(work, state, lambda box: write(box, {"sub/c": "C\n", "new": "new\n"}))
    index, staged = (work / ".git/index").read_bytes(), git(work, "diff", "--cached", "--name-status")

    await changes.apply()

    assert (work / ".git/index").read_bytes() == index
    assert git(work, "diff", "--cached", "--name-status") == staged == "A\tstaged\nD\tsub/c\n"
    assert (work / "sub/c").read_text() == "C\n"


async def test_two_runs_of_one_folder_are_both_applied(work: Path, state: Path) -> None:
    one = await changes_of(work, state, lambda box: write(box, {"one": "1\n", "a": "one\n" + LINES}), "one")
    two = await changes_of(work, state, lambda box: write(box, {"two": "2\n", "a": LINES + "nine\n"}), "two")

    await one.apply()
    await two.apply()

    assert (work / "a").read_text() == "one\n" + LINES + "nine\n"
    assert {"one", "two"} <= {path.name for path in work.iterdir()}


@pytest.mark.parametrize("after", ["file", "program", "folder", "link"])
@pytest.mark.parametrize("before", ["file", "program", "folder", "link"])
async def test_each_kind_comes_in_the_place_of_each(tmp_path: Path, state: Path, before: str, after: str) -> None:
    def make(folder: Path, kind: str) -> None:
        if kind == "folder":
            write(folder, {"x/y/z": "z\n", "x/w": "w\n"})
        elif kind == "link":
            (folder / "x").symlink_to("target")
        else:
            write(folder, {"x": f"{kind}\n"})
            (folder / "x").chmod(0o755 if kind == "program" else 0o644)

    def edit(box: Path) -> None:
        if (box / "x").is_dir():
            shutil.rmtree(box / "x")
        else:
            (box / "x").unlink()
        make(box, after)

    work, wanted = tmp_path / "work", tmp_path / "wanted"
    for folder, kind in ((work, before), (wanted, after)):
        folder.mkdir()
        make(folder, kind)

    applied = await (await changes_of(work, state, edit)).apply()

    assert look(work) == look(wanted)
    assert bool(applied.paths) is (before != after)


async def test_what_the_folder_has_already_is_no_change(any_folder: Path, state: Path) -> None:
    changes = await changes_of(any_folder, state, everything)
    (any_folder / "b").unlink()
    write(any_folder, {"a": LINES.replace("8", "eight"), "new/y": "y\n"})

    applied = await changes.apply()

    assert not {b"a", b"b", b"new/y"} & {*applied.paths}
    assert len(applied.paths) == 10


# What is in the way


async def test_an_ignored_file_of_the_user_is_not_overwritten(work: Path, state: Path) -> None:
    write(work, {".gitignore": "out\n"})
    commit(work)
    shadow = await ran(work, state, lambda box: write(box, {"b": "changed\n", "out": "the agent's\n"}))
    write(work, {"out": "the user's\n"})
    before = look(work)

    with pytest.raises(ConflictError) as caught:
        await (await Changes.load(shadow, RUN)).apply()

    assert caught.value.paths == (b"out",)
    assert look(work) == before


async def test_a_folder_with_ignored_files_is_not_removed_for_a_file(work: Path, state: Path) -> None:
    write(work, {".gitignore": "*.o\n"})
    commit(work)

    def edit(box: Path) -> None:
        (box / "sub/deep/d").unlink()
        (box / "sub/deep").rmdir()
        write(box, {"sub/deep": "a file\n", "b": "changed\n"})

    changes = await changes_of(work, state, edit)
    write(work, {"sub/deep/x.o": "object"})
    before = look(work)

    with pytest.raises(ConflictError) as caught:
        await changes.apply()

    assert caught.value.paths == (b"sub/deep",)
    assert look(work) == before


async def test_a_folder_that_holds_ignored_files_stays_when_its_others_go(work: Path, state: Path) -> None:
    write(work, {".gitignore": "*.o\n", "sub/deep/x.o": "object"})
    commit(work)

    await (await changes_of(work, state, lambda box: (box / "sub/deep/d").unlink())).apply()

    assert [path.name for path in (work / "sub/deep").iterdir()] == ["x.o"]


async def test_a_folder_that_the_user_replaced_by_a_link_is_not_written_through(
    work: Path, state: Path, tmp_path: Path
) -> None:
    victim = make_folder(tmp_path / "victim", {"c": "c\n"}, is_repository=False)
    changes = await changes_of(work, state, lambda box: write(box, {"sub/c": "C\n", "sub/deep/d": "D\n"}))
    git(work, "rm", "-rq", "sub")
    (work / "sub").symlink_to(victim)
    before, victims = look(work), look(victim)

    with pytest.raises(ConflictError):
        await changes.apply()

    assert look(work) == before
    assert look(victim) == victims


async def test_the_agents_folder_in_place_of_the_users_link_leaves_the_victim(
    any_folder: Path, state: Path, tmp_path: Path
) -> None:
    victim = make_folder(tmp_path / "victim", {"key": "secret\n"}, is_repository=False)
    (any_folder / "lib").symlink_to(victim)

    def edit(box: Path) -> None:
        (box / "lib").unlink()
        write(box, {"lib/key": "replaced\n", "lib/more": "more\n"})

    await (await changes_of(any_folder, state, edit)).apply()

    assert look(victim) == {"key": ("644", b"secret\n".hex())}
    assert (any_folder / "lib/key").read_text() == "replaced\n"


async def test_an_ignored_link_of_the_user_is_not_followed(work: Path, state: Path, tmp_path: Path) -> None:
    victim = make_folder(tmp_path / "victim", {"key": "secret\n"}, is_repository=False)
    write(work, {".gitignore": "lib\n"})
    commit(work)
    changes = await changes_of(work, state, lambda box: write(box, {"lib/key": "replaced\n", "b": "changed\n"}))
    (work / "lib").symlink_to(victim)
    before = look(work)

    with pytest.raises(ConflictError) as caught:
        await changes.apply()

    assert caught.value.paths == (b"lib",)
    assert look(work) == before
    assert (victim / "key").read_text() == "secret\n"


async def test_a_hard_link_is_broken_and_never_written_through(any_folder: Path, state: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("shared\n")
    (any_folder / "six.py").hardlink_to(cache)

    await (await changes_of(any_folder, state, lambda box: (box / "six.py").write_text("changed\n"))).apply()

    assert (any_folder / "six.py").read_text() == "changed\n"
    assert cache.read_text() == "shared\n"


# Modes and owners


@pytest.mark.parametrize(
    ("mode", "is_program", "wanted"),
    [(0o600, False, 0o600), (0o640, True, 0o750), (0o755, False, 0o644), (0o4755, True, 0o755)],
)
async def test_who_may_read_a_file_stays_as_it_was(
    work: Path, state: Path, mode: int, is_program: bool, wanted: int
) -> None:
    (work / "b").chmod(mode)

    def edit(box: Path) -> None:
        (box / "b").write_text("changed\n")
        (box / "b").chmod(0o755 if is_program else 0o644)

    await (await changes_of(work, state, edit)).apply()

    assert (work / "b").stat().st_mode & 0o7777 == wanted


@pytest.mark.skipif(os.getuid() != 0, reason="only root can write what is another's")
async def test_what_root_applies_belongs_to_whose_the_folder_is(work: Path, state: Path) -> None:
    for path in [work, *work.rglob("*")]:
        os.chown(path, 1234, 1235, follow_symlinks=False)
    os.chown(work / "b", 1300, 1301)

    await (await changes_of(work, state, everything)).apply()

    owners = {str(path.relative_to(work)): (path.lstat().st_uid, path.lstat().st_gid) for path in work.rglob("*")}
    assert {owners[name] for name in ("new", "new/one", "new/one/x", "way", "e f", "e f/g", "a", "sub/deep")} == {
        (1234, 1235)
    }

    again = await changes_of(work, state, lambda box: (box / "sub/c").chmod(0o755), "again")
    os.chown(work / "sub/c", 1300, 1301)
    await again.apply()
    assert (work / "sub/c").stat().st_uid == 1300


# Names


async def test_names_that_a_file_system_takes_for_the_same_are_refused_there(
    work: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = {"B": "another\n", "caf\u00e9": "1\n", "cafe\u0301": "2\n"}
    changes = await changes_of(work, state, lambda box: write(box, edit))
    before = look(work)
    with monkeypatch.context() as patched:
        patched.setattr("container_runner.workspace.target.Target.folds_names", lambda _: True)
        with pytest.raises(ConflictError) as caught:
            await changes.apply()
    assert {*caught.value.paths} == {b"B", b"b", "caf\u00e9".encode(), "cafe\u0301".encode()}
    assert look(work) == before

    await changes.apply()  # on one that can tell them apart

    assert (work / "B").read_text() == "another\n"
    assert (work / "b").read_text() == "b\n"


# Findings


async def test_findings_are_left_out_until_they_are_named(work: Path, state: Path) -> None:
    write(work, {".claude/settings.json": "{}\n"})
    commit(work)

    def edit(box: Path) -> None:
        write(box, {".envrc": "evil\n", ".claude/settings.json": "evil\n", ".claude/hooks/x": "evil\n", "b": "fine\n"})
        (box / "out").symlink_to("/etc")

    changes = await changes_of(work, state, edit)

    applied = await changes.apply()

    assert applied.paths == (b"b",)
    assert {finding.path for finding in applied.left_out} == {
        b".envrc", b".claude/settings.json", b".claude/hooks/x", b"out"
    }  # fmt: skip
    assert (work / ".claude/settings.json").read_text() == "{}\n"
    assert not (work / ".envrc").exists()
    assert not os.path.lexists(work / "out")

    assert (await changes.apply([".claude"])).paths == (b".claude/hooks/x", b".claude/settings.json")
    assert not (work / ".envrc").exists()
    applied = await changes.apply(["all"])
    assert applied.paths == (b".envrc", b"out")
    assert applied.left_out == ()
    assert (work / "out").readlink() == Path("/etc")


async def test_a_link_that_is_left_out_leaves_the_folder_that_it_was_to_replace(work: Path, state: Path) -> None:
    def edit(box: Path) -> None:
        for path in (box / "sub/deep/d", box / "sub/c"):
            path.unlink()
        (box / "sub/deep").rmdir()
        (box / "sub").rmdir()
        (box / "sub").symlink_to("/etc")

    before = look(work)

    assert (await (await changes_of(work, state, edit)).apply()).paths == ()
    assert look(work) == before


async def test_after_an_apply_the_hosts_git_runs_nothing_of_the_agent(work: Path, state: Path, tmp_path: Path) -> None:
    """Configuration, hooks, a gitlink with a repository behind it, a bare one: all of it included by name."""
    evidence = tmp_path / "ran"
    evil = f"#!/bin/sh\ntouch {evidence}\n"

    def edit(box: Path) -> None:
        write(box, {"node_modules/.x/f": "f\n", "x": "x\n"})
        git(box / "node_modules/.x", "init", "-q", "-b", "main")
        commit(box / "node_modules/.x")
        git(box, "add", "-Af")
        git(box, "commit", "-qm", "with a gitlink")
        for at in (box / ".git", box / "node_modules/.x/.git"):
            (at / "hooks").mkdir(exist_ok=True)
            for hook in ("pre-commit", "post-commit", "post-index-change", "post-checkout", "reference-transaction"):
                (at / "hooks" / hook).write_text(evil)
                (at / "hooks" / hook).chmod(0o755)
            with (at / "config").open("a") as config:
                config.write(f'[core]\nfsmonitor = "touch {evidence}; true"\npager = "touch {evidence}"\n')
        write(box, {"bare/HEAD": "ref: refs/heads/main\n", "bare/objects/x": "", "bare/refs/x": ""})
        write(box, {"bare/config": f'[core]\nfsmonitor = "touch {evidence}; true"\nworktree = ..\n'})

    changes = await changes_of(work, state, edit)
    evidence.unlink(missing_ok=True)  # the scene itself is the agent's git

    assert {finding.path for finding in (await changes.apply()).left_out} == {
        b"node_modules", b"bare/HEAD", b"bare/config"
    }  # fmt: skip
    git(work / "bare", "status")  # the workspace's own, because bare/ is no repository
    await changes.apply(["all"])
    await changes.branch("fix")
    git(work, "status")
    git(work, "diff")
    git(work, "add", "-A", ":!bare")
    git(work, "commit", "-qm", "the work")

    assert not evidence.exists()
    assert (work / "node_modules/.x/f").read_text() == "f\n"
    assert not (work / "node_modules/.x/.git").exists()
