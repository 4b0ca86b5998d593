"""Repositories as their files tell of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.workspace.repositories import enclosing_repository, git_folder, read_index

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
