"""Repositories as their files tell of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.errors import WorkspaceError
from container_runner.workspace.repositories import borrowed, enclosing_repository, git_folder, read_index
from container_runner.workspace.repository import check_objects, find_repository

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always", *words]
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environ).stdout.decode()


@needs_git
@pytest.mark.parametrize("sha256", [False, True])
@pytest.mark.parametrize("version", ["2", "3", "4"])
def test_an_index_says_what_is_tracked_and_what_is_a_repository_of_its_own(
    tmp_path: Path, version: str, sha256: bool
) -> None:
    kind = f"--object-format={'sha256' if sha256 else 'sha1'}"
    git(tmp_path, "init", "--quiet", kind, "top")
    git(tmp_path, "init", "--quiet", kind, "top/deep/inner")
    git(tmp_path / "top/deep/inner", "commit", "--quiet", "--allow-empty", "--message=x")
    names = [
        ".vscode/settings.json",
        "a",
        f"{'long' * 60}/{'er' * 100}",
        *(f"src/{n}{'x' * n}" for n in range(200)),
        "é",
    ]
    for name in names:
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).touch()
    git(tmp_path / "top", "add", "--all")
    git(tmp_path / "top", "update-index", f"--index-version={version}")
    if version == "3":  # it is what an index with such an entry becomes
        git(tmp_path / "top", "rm", "--cached", "--quiet", "a")
        git(tmp_path / "top", "add", "--intent-to-add", "a")
    assert (tmp_path / "top/.git/index").read_bytes()[7] == int(version)

    found = list(read_index(tmp_path / "top/.git", sha256=sha256))

    assert [path for path, _ in found] == git(tmp_path / "top", "ls-files", "-z").split("\0")[:-1]
    assert [path for path, is_link in found if is_link] == ["deep/inner"]


@given(data=st.binary(max_size=200), version=st.integers(0, 6))
def test_whatever_is_no_index_says_nothing_bad(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, version: int
) -> None:
    folder = tmp_path_factory.mktemp("git")
    (folder / "index").write_bytes(b"DIRC" + version.to_bytes(4, "big") + b"\0\0\1\0" + data)

    assert len(list(read_index(folder))) <= 256


def test_no_index_says_nothing(tmp_path: Path) -> None:
    assert list(read_index(tmp_path)) == []


def test_where_a_repository_is(tmp_path: Path) -> None:
    for name in ("bare/objects", "bare/refs", "file", "none"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bare/HEAD").touch()
    (tmp_path / "file/.git").write_text("gitdir: ../bare/modules/x\n")

    assert git_folder(tmp_path / "bare") == tmp_path / "bare"
    assert git_folder(tmp_path / "file") == tmp_path / "bare/modules/x"
    assert git_folder(tmp_path / "none") is None
    (tmp_path / "none/.git").symlink_to(tmp_path / "bare")
    assert git_folder(tmp_path / "none") is None


def test_the_repository_around_a_folder(tmp_path: Path) -> None:
    (tmp_path / "top/.git").mkdir(parents=True)
    (tmp_path / "top/a/b").mkdir(parents=True)

    assert enclosing_repository(tmp_path / "top/a/b") == tmp_path / "top"
    assert enclosing_repository(tmp_path / "top") is None


def objects_of(folder: Path) -> Path:
    """The git folder of what looks like a repository."""
    for name in ("info", "pack"):
        (folder / ".git/objects" / name).mkdir(parents=True)
    (folder / ".git/refs").mkdir()
    (folder / ".git/HEAD").write_text("ref: refs/heads/main\n")
    return folder / ".git"


BORROWED = {
    "alternates": "{private}",
    "of alternates": "{private}",
    "relative": "../../../private/.git/objects",
    "through a link": "../../../link/objects",
    "quoted": '"{private}"',
    "of an odd line": "nowhere\x0b\n# {private}\n{private}",
}


@pytest.mark.parametrize(
    "way", [*BORROWED, "objects", "objects/pack", "objects/info", "objects/info/alternates", "none"]
)
def test_where_a_repository_reads_objects(tmp_path: Path, way: str) -> None:
    private, git = objects_of(tmp_path / "private"), objects_of(tmp_path / "work")
    (tmp_path / "link").symlink_to(private)
    if way in BORROWED:
        lender = objects_of(tmp_path / "lender") if way == "of alternates" else git
        (git / "objects/info/alternates").write_text(f"{lender / 'objects'}\n")
        line = BORROWED[way].format(private=private / "objects")
        (lender / "objects/info/alternates").write_text(f"{line}\n")
    elif way != "none":
        place, there = git / way, private / way
        if place.is_dir():
            shutil.rmtree(place)
        place.symlink_to(there)

    found = borrowed(git)

    where = git / "objects/info/alternates" if way == "objects/info/alternates" else private
    assert any(str(folder).strip('"').startswith(str(where)) for folder in found) == (way != "none")
    assert way != "none" or found == []


def test_a_repository_that_borrows_is_refused_unless_it_is_named_from_where(tmp_path: Path) -> None:
    private, git = objects_of(tmp_path / "private"), objects_of(tmp_path / "work")
    module = git / "modules/m"
    shutil.copytree(private, module)
    repository = find_repository(tmp_path / "work")
    assert repository is not None
    check_objects(repository, ())

    (git / "objects/info/alternates").write_text(f"{private / 'objects'}\n")
    with pytest.raises(WorkspaceError) as caught:
        check_objects(repository, ["/elsewhere"])
    assert f"--volume={private}/objects:{private}/objects:ro" in caught.value.next_step
    check_objects(repository, [str(private)])

    (module / "objects/info/alternates").write_text(f"{private / 'objects'}\n")
    with pytest.raises(WorkspaceError) as caught:
        check_objects(repository, [str(private)])
    assert caught.value.next_step.endswith(f"`git repack -a -d && rm objects/info/alternates` in {module}.")


@pytest.mark.parametrize("way", ["folder", "file"])
def test_a_repository_whose_rest_is_another_ones_is_refused(tmp_path: Path, way: str) -> None:
    private, work = objects_of(tmp_path / "private"), tmp_path / "work"
    git = objects_of(work)
    if way == "file":
        own = work / "x/worktrees/w"
        own.mkdir(parents=True)
        (own / "HEAD").write_text("ref: refs/heads/main\n")
        shutil.rmtree(git)
        git.write_text("gitdir: x/worktrees/w\n")
        git = own
    else:
        (git / "commondir").write_text("./\n")
        assert find_repository(work) is not None
    (git / "commondir").write_text(f"{private}\n")

    with pytest.raises(WorkspaceError):
        find_repository(work)
