"""What an agent tries with the places that the host acts on later, and git in a worktree."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from container_runner import CommandRuntime
from tests.integration.engines import RealEngine
from tests.integration.runs import Box, collect, error_of, lines_of

ATTEMPTS = {
    "echo evil >{}": "read-only",
    "rm -f {}": "busy",
    "mv {} {}.old": "busy",
    "echo evil >new && mv -f new {}": "busy",
    "ln {} linked && echo evil >linked": "cross-device",
    "chmod 777 {}": "read-only",
}
"""What is tried with a file, and what the kernel says."""


HOST = """
[user]
name = Host
email = host@localhost
[safe]
directory = *
[protocol "file"]
allow = always
"""
"""The configuration of git on the host."""


@pytest.fixture
def box(engine: RealEngine, workspace: Path) -> Box:
    box = Box.make(engine, workspace)
    git(box, "init", "--quiet", ".")
    git(box, "commit", "--quiet", "--allow-empty", "--message=first")
    return box


def git(box: Box, *words: str, folder: Path | None = None) -> str:
    """What git prints on the host. Afterwards everything belongs to the agent."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    config = box.folder / "gitconfig"
    config.write_text(HOST)
    done = subprocess.run(
        ["git", *words],
        cwd=folder or box.workspace,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": str(config), "GIT_CONFIG_NOSYSTEM": "1"},
    )
    own(box, box.folder)
    return done.stdout


def own(box: Box, folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *box.engine.owner, follow_symlinks=False)


def test_a_file_that_the_host_acts_on_can_not_be_changed_or_replaced(box: Box) -> None:
    files = [".git/config", ".envrc", ".mcp.json"]
    for name in files[1:]:
        (box.workspace / name).write_text("mine\n")
    own(box, box.workspace)
    before = {name: (box.workspace / name).read_text() for name in files}
    tries = [(attempt.format(name, name), says) for name in files for attempt, says in ATTEMPTS.items()]

    told = box.sh("; ".join(f'echo "$( ({attempt}) 2>&1)"' for attempt, _ in tries))

    for (attempt, says), line in zip(tries, told.splitlines(), strict=True):
        assert says in line.lower(), attempt
    assert {name: (box.workspace / name).read_text() for name in files} == before


def test_nobody_can_plant_a_hook_or_a_setting(box: Box) -> None:
    (box.workspace / ".claude").mkdir()
    (box.workspace / ".git/hooks/pre-commit").write_text("#!/bin/sh\n")
    own(box, box.workspace)

    told = box.sh(
        "echo evil >.git/hooks/pre-commit; echo evil >.git/hooks/new; echo evil >.claude/settings.local.json; "
        "mv .git .git2; mv .git/hooks .git/h; mv .claude .c; rmdir .claude; echo fine >.git/objects/made"
    )

    assert told.lower().count("read-only") == 3
    assert told.lower().count("busy") == 4
    assert "evil" not in (box.workspace / ".git/hooks/pre-commit").read_text()
    assert not (box.workspace / ".git/hooks/new").exists()
    assert [path.name for path in (box.workspace / ".claude").iterdir()] == ["worktrees"]
    assert (box.workspace / ".git/objects/made").read_text() == "fine\n"


def test_what_is_asked_for_by_name_is_writable(box: Box) -> None:
    (box.workspace / ".envrc").touch()
    own(box, box.workspace)

    assert box.sh("echo new >.envrc; rm .envrc; echo x >.git/hooks/new", unprotected=[".envrc", ".git/hooks"]) == ""

    assert not (box.workspace / ".envrc").exists()
    assert (box.workspace / ".git/hooks/new").exists()


def test_nothing_is_left_on_the_host_but_an_empty_hooks_folder(box: Box) -> None:
    shutil.rmtree(box.workspace / ".git/hooks")
    before = {path.relative_to(box.workspace) for path in box.workspace.rglob("*")}

    assert "read-only" in box.sh("echo evil >.git/hooks/new").lower()

    after = {path.relative_to(box.workspace) for path in box.workspace.rglob("*")}
    assert after - before == {Path(".git/hooks")}
    assert git(box, "status", "--short") == ""
    assert (box.workspace / ".git/hooks").stat().st_uid == box.engine.owner[0]


WORK = """
set -e
echo change >file; echo secret >.env; git add --all; git commit --quiet --message="from the box"
git log -1 --format="%an <%ae> %s" ; git ls-files
cd vendor/lib; echo y >y; git add y; git commit --quiet --message="in the submodule"; git log -1 --format=%s
cd ../..; git submodule --quiet update --init; git -C vendor/lib log -1 --format=%s
git -C nested commit --quiet --allow-empty --message="in the nested one"; git -C nested log -1 --format=%s
git worktree add --quiet .claude/worktrees/agent; git -C .claude/worktrees/agent commit --quiet --allow-empty -m x
echo raw >x.bin; git add x.bin 2>&1 | tail -1
"""

PLANT = """
for git in .git .git/modules/vendor/lib nested/.git; do
  for place in config commondir hooks/new; do (echo evil >$git/$place) 2>&1; done
  mv $git ${git}2 2>&1; mv $git/hooks $git/h 2>&1; rm -f $git/commondir 2>&1
done
(echo evil >.devcontainer/devcontainer.json) 2>&1; (echo evil >.claude/settings.json) 2>&1
"""


@pytest.mark.claude
def test_git_works_and_what_it_runs_is_out_of_reach(
    box: Box, claude_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ignored").write_text(".env\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    (tmp_path / "config").write_text(
        f"[user]\nname = Me\nemail = me@home\n[core]\nexcludesFile = {tmp_path}/ignored\n"
        '[filter "lfs"]\nclean = no-lfs\n'
    )
    for name in ("lib", "project/nested"):
        git(box, "init", "--quiet", str(box.folder / name))
        git(box, "commit", "--quiet", "--allow-empty", "--message=first", folder=box.folder / name)
    git(box, "submodule", "--quiet", "add", "../lib", "vendor/lib")
    for name in (".devcontainer/devcontainer.json", ".claude/CLAUDE.md", ".gitattributes", ".gitignore"):
        (box.workspace / name).parent.mkdir(exist_ok=True)
        (box.workspace / name).touch()
    (box.workspace / ".gitattributes").write_text("*.bin filter=lfs\n")
    (box.workspace / ".gitignore").write_text("nested\n.claude/worktrees\n")
    git(box, "add", "--all")
    git(box, "commit", "--quiet", "--message=second")
    own(box, box.workspace)

    messages = collect(box.runner(CommandRuntime(["sh", "-c", WORK]), image=claude_image), box.options("go"))
    script = f"{PLANT}\ngit worktree remove .claude/worktrees/agent && echo gone"
    walled = box.runner(CommandRuntime(["sh", "-c", script]), image=claude_image, protected=[".git/commondir"])
    again = collect(walled, box.options("go"))

    told = [line.decode() for line in lines_of(messages)]
    assert error_of(messages) is None, messages
    assert told[0] == "Me <me@home> from the box"
    assert "file" in told
    assert ".env" not in told
    assert told[-4:] == [
        "in the submodule", "first", "in the nested one", "fatal: x.bin: clean filter 'lfs' failed",
    ]  # fmt: skip
    assert git(box, "log", "-1", "--format=%s") == "from the box\n"
    assert git(box, "log", "--all", "-1", "--format=%s", folder=box.workspace / "nested") == "in the nested one\n"
    said = [line.decode().lower() for line in lines_of(again)]
    assert error_of(again) is None, again
    assert said.pop() == "gone"
    assert sum("read-only" in line for line in said) == 11, said
    assert sum("busy" in line for line in said) == 9, said
    assert git(box, "status", "--short") == "?? .env\n?? x.bin\n"


def test_a_repository_of_another_user_is_one_to_git(box: Box, claude_image: str) -> None:
    """As in a job of root's, where the agent is somebody else and may only read."""
    if box.engine.owner == (0, 0):
        pytest.skip("to the engine all is the caller's")
    for path in (box.workspace, *box.workspace.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)

    runner = box.runner(CommandRuntime(["git", "log", "--format=%s"]), image=claude_image, workspace_mode="ro")

    assert lines_of(collect(runner, box.options("go"))) == [b"first"]


SCRIPT = """
set -e
git status --short
echo change >file
git add file
git -c user.name=Agent -c user.email=agent@localhost commit --quiet --message="from the box"
git log --format=%s
git worktree prune --expire=now
git worktree list --porcelain | grep -c ^worktree
set +e
for path in hooks/new config worktrees/other/HEAD worktrees/linked/commondir; do
  (echo evil >"$(git rev-parse --git-common-dir)/$path") 2>&1
done
git config user.name Evil 2>&1
echo evil >.git
true
"""


@pytest.mark.claude
def test_git_works_in_a_worktree_and_can_not_reach_out_of_it(box: Box, claude_image: str) -> None:
    git(box, "worktree", "add", "--quiet", "../linked")
    git(box, "worktree", "add", "--quiet", "../other")
    config = (box.workspace / ".git/config").read_text()
    runner = box.runner(CommandRuntime(["sh", "-c", SCRIPT]), image=claude_image)

    messages = collect(runner, box.options("go", workspace=box.folder / "linked"))

    told = [line.decode().lower() for line in lines_of(messages)]
    assert error_of(messages) is None, messages[-1]
    assert told[:3] == ["from the box", "first", "3"]
    assert sum("read-only" in line for line in told) == 4, told
    assert any("busy" in line for line in told), told
    assert git(box, "log", "--format=%s", "linked") == "from the box\nfirst\n"
    assert git(box, "status", "--short", folder=box.folder / "linked") == ""
    assert git(box, "worktree", "list").count("\n") == 3
    assert (box.workspace / ".git/config").read_text() == config
    assert not (box.workspace / ".git/hooks/new").exists()
