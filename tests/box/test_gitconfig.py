"""What of the host's git configuration is in the box, read without git."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.box import gitconfig
from container_runner.box.gitconfig import IGNORED, box_files, parse
from container_runner.config import paths

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

ODD = r"""
; a comment
[user] name = Jürgen "von \"X\"" # and another
	EMAIL = "a;b@c"   ; third
[core]
	excludesFile = ~/ignored
	bare
[filter "l\"f s"]
	clean = git-lfs clean \
-- %f
	smudge = "a\tb\\c"  "  d "
[Remote.Old]
	url=x
	empty =
"""


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gitconfig, "SYSTEM", tmp_path / "system")


def git_reads(file: Path, *words: str) -> dict[str, str]:
    """What git says of a file."""
    command = ["git", "config", "--file", str(file), "--null", "--list"]
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    said = subprocess.run(command, capture_output=True, check=True, env=environ).stdout.decode()
    return dict(item.partition("\n")[::2] for item in said.split("\0") if item)


@needs_git
def test_a_file_is_read_as_git_reads_it(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(ODD)

    expected = git_reads(tmp_path / "config")

    assert len(expected) == 8
    assert dict(parse(ODD)) == {**expected, "core.bare": "true"}


@needs_git
@given(name=st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20).map(str.strip))
def test_whatever_a_person_is_called_git_in_the_box_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("home")
    subprocess.run(
        ["git", "config", "--file", str(folder / ".gitconfig"), "user.name", name],
        check=True, env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )  # fmt: skip

    (folder / "box").write_text(box_files({"HOME": str(folder)}, None)[".gitconfig"])

    assert git_reads(folder / "box")["user.name"] == name


@given(text=st.text(st.sampled_from('[]"\\=#; \n\tab.'), max_size=60))
def test_whatever_a_file_says_it_can_be_read(text: str) -> None:
    for key, _ in parse(text):
        assert key == key.strip()


def test_the_nearer_file_wins_and_what_is_not_asked_for_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "system").write_text("[user]\nname = System\nemail = system@x\n")
    (tmp_path / "xdg/git").mkdir(parents=True)
    (tmp_path / "xdg/git/config").write_text("[user]\nname = Xdg\n")
    (tmp_path / ".gitconfig").write_text(
        "[user]\nname = Home\nsigningKey = k\n[core]\nfsmonitor = evil\n[credential]\nhelper = store\n"
    )
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}

    def said(**more: str) -> dict[str, str]:
        return dict(parse(box_files({**environ, **more}, None)[".gitconfig"]))

    assert said() == {"user.name": "Home", "user.email": "system@x", "safe.directory": "*"}
    assert said(GIT_CONFIG_NOSYSTEM="1") == {"user.name": "Home", "safe.directory": "*"}
    assert said(GIT_CONFIG_GLOBAL=str(tmp_path / "nowhere")) == {
        "user.name": "System", "user.email": "system@x", "safe.directory": "*",
    }  # fmt: skip


def test_without_a_configuration_or_a_home_git_still_works_in_the_box() -> None:
    assert box_files({}, None) == {".gitconfig": '[safe]\n\tdirectory = "*"\n'}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("gitdir:~/source/", True),
        ("gitdir:~/source/**", True),
        ("gitdir:~/SOURCE/", False),
        ("gitdir/i:~/SOURCE/", True),
        ("gitdir:./source/", True),
        ("gitdir:source/", True),
        ("gitdir:/source/", False),
        ("gitdir:**/project/.git", True),
        ("gitdir:~/*/project/.git", True),
        ("gitdir:~/*/.git", False),
        ("gitdir:~/sourc?/", True),
        ("gitdir:~/sourc./", False),
        ("onbranch:main", False),
        ("hasconfig:remote.*.url:x", False),
    ],
)
@needs_git
def test_a_condition_is_that_of_the_workspace_as_git_has_it(tmp_path: Path, condition: str, holds: bool) -> None:
    (tmp_path / ".gitconfig").write_text(f'[user]\nname = a\n[includeIf "{condition}"]\npath = other.inc\n')
    (tmp_path / "other.inc").write_text("[user]\nname = b\n")
    project = tmp_path / "source/project"
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "--quiet", str(project)], check=True, env=environ)
    command = ["git", "-C", str(project), "config", "user.name"]
    assert subprocess.run(command, capture_output=True, check=True, env=environ).stdout == (b"b\n" if holds else b"a\n")

    found = dict(parse(box_files({"HOME": str(tmp_path)}, project / ".git")[".gitconfig"]))

    assert found["user.name"] == ("b" if holds else "a")


def test_files_that_include_each_other_end(tmp_path: Path) -> None:
    (tmp_path / ".gitconfig").write_text("[include]\npath = .gitconfig\n[user]\nname = a\n")

    assert 'name = "a"' in box_files({"HOME": str(tmp_path)}, None)[".gitconfig"]


@pytest.mark.parametrize("spelled", ["", "[core]\nexcludesFile = ~/mine\n"])
def test_what_is_never_added_is_in_the_box_by_value(tmp_path: Path, spelled: str) -> None:
    (tmp_path / ".config/git").mkdir(parents=True)
    (tmp_path / (".config/git/real" if not spelled else "real")).write_text(".env\n\udcff\n", errors="surrogateescape")
    (tmp_path / (".config/git/ignore" if not spelled else "mine")).symlink_to("real")
    (tmp_path / ".gitconfig").write_text(spelled)

    found = box_files({"HOME": str(tmp_path)}, None)

    assert found[IGNORED] == ".env\n\udcff\n"
    assert dict(parse(found[".gitconfig"]))["core.excludesfile"] == f"{paths.HOME}/{IGNORED}"


def test_a_filter_whose_program_may_be_missing_is_required(tmp_path: Path) -> None:
    """git would else add what the filter should have turned into something else."""
    (tmp_path / ".gitconfig").write_text(
        '[filter "lfs"]\nprocess = git-lfs filter-process\nrequired = false\n[filter "strip"]\nclean = strip-it\n'
    )

    found = dict(parse(box_files({"HOME": str(tmp_path)}, None)[".gitconfig"]))

    assert found["filter.lfs.process"] == "git-lfs filter-process"
    assert found["filter.lfs.required"] == found["filter.strip.required"] == "true"
    assert found["filter.strip.clean"] == "strip-it"
    assert found["filter.strip.smudge"] == "cat"


@needs_git
def test_git_logs_in_with_a_token_as_the_page_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/secrets.md").read_text()
    (table,) = re.findall(r"```toml\n(\[defaults\].*?GIT_CONFIG.*?)```", page, re.DOTALL)
    said = tomllib.loads(table)["defaults"]
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", "GIT_ASKPASS": "false"}
    environ |= {**said["env"], "GITHUB_TOKEN": "to%ken", "GIT_TERMINAL_PROMPT": "0"}

    def git(*words: str, told: str = "") -> str:
        done = subprocess.run(
            ["git", *words], input=told, env=environ, cwd=tmp_path, capture_output=True, check=False, text=True
        )
        return done.stdout

    assert said["secrets"] == ["GITHUB_TOKEN"]
    asked = "protocol=https\nhost=%s\n\n"
    assert "username=x-access-token\npassword=to%ken\n" in git("credential", "fill", told=asked % "github.com")
    assert "to%ken" not in git("credential", "fill", told=asked % "example.com")
    assert git("ls-remote", "--get-url", "git@github.com:me/it.git") == "https://github.com/me/it.git\n"


@needs_git
def test_a_file_is_not_added_as_it_is_where_its_filter_is_missing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text('[filter "lfs"]\nclean = no-such-program -- %f\nsmudge = no-such-program\n')
    (tmp_path / ".gitconfig").write_text(box_files({"HOME": str(home)}, None)[".gitconfig"])
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "--quiet", "project"], check=True, env=environ, cwd=tmp_path)
    (tmp_path / "project/.gitattributes").write_text("*.bin filter=lfs\n")
    (tmp_path / "project/x.bin").write_text("raw")

    done = subprocess.run(
        ["git", "add", "x.bin"], env=environ, cwd=tmp_path / "project", capture_output=True, check=False
    )

    assert done.returncode != 0
    assert b"clean filter 'lfs' failed" in done.stderr
