"""A hostile agent in a carried workspace does, in one run, all that was found to reach out of a mounted one.

The host has nothing of it: not then, not after an apply, and not when git runs there. tests/test_way_out.py has what a
box could send instead of a work.
"""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import anyio
import attrs
import pytest

from container_runner.workspace.changes import Applied, Changes
from tests.integration.engines import OWN
from tests.integration.runs import Box, error_of, on, tool_output
from tests.integration.test_carried import GIT, WHO, Carried, own, tree
from tests.integration.test_swaps import Trap

pytestmark = on(*OWN)

HOSTILE = r"""
evil() { printf '#!/bin/sh\ntouch @RAN@\n' >"$1"; chmod 755 "$1"; }
obey() { printf '[core]\n fsmonitor = touch @RAN@;\n hooksPath = @HOOKS@\n' >>"$1"; }

# A socket of the host's, and an engine's.
for it in svc.sock docker.sock; do
  perl -e 'socket(S,1,1,0) && connect(S,pack("Sa108",1,"/workspace/$ARGV[0]")) or exit 1' $it && echo $it >>reached
done

# Files that are others' as well: hard links into a cache, a home in the folder.
echo evil >>.venv/six.py
echo evil >>.ssh/authorized_keys
touch -r app.py stamp; printf 'evil' | dd of=app.py conv=notrunc 2>/dev/null; touch -r stamp app.py

# The repository of this worktree, which lies outside: another in its place, hooks, settings, a rebase to go on with.
common=$(git rev-parse --git-common-dir) own=$(git rev-parse --git-dir)
mkdir -p "$common/c" "$common/hooks" "$own/rebase-merge"
cp -r "$common/objects" "$common/refs" "$common/HEAD" "$common/c/"
obey "$common/config"; obey "$common/c/config"
for hook in post-checkout pre-commit post-index-change reference-transaction; do evil "$common/hooks/$hook"; done
echo "exec touch @RAN@" >"$own/rebase-merge/git-rebase-todo"; echo HEAD >"$own/rebase-merge/head-name"

# A gitlink with a repository in it, a repository in a folder, a bare one, a folder that says it is in one.
git init -q node_modules/.x
git -C node_modules/.x -c core.hooksPath= -c core.fsmonitor=false commit -q --allow-empty -m x
obey node_modules/.x/.git/config
git -c core.hooksPath= -c core.fsmonitor=false add -f node_modules/.x
git -c core.hooksPath= -c core.fsmonitor=false commit -q -m 'by the agent'
mkdir -p nested/.git bare/objects bare/refs x; echo 'ref: refs/heads/main' | tee nested/.git/HEAD >bare/HEAD
mkdir nested/.git/objects nested/.git/refs
obey nested/.git/config; obey bare/config; echo "gitdir: $common/c" >x/.git

# Links out of the folder in place of what is there, and what is no file.
rm -rf sub; ln -s @VICTIM@ sub; echo evil >sub/file 2>/dev/null; echo evil >sub/key 2>/dev/null
mkfifo fifo; chmod 4755 app.py; evil .envrc; mkdir .vscode; echo '{}' >.vscode/tasks.json
perl -e 'exit 0' && echo tried >honest
exit 0
"""


@pytest.fixture
def way() -> str:
    return "overlay"


@pytest.fixture
def carried(box: Box, way: str) -> Carried:
    return Carried(box, way)


@attrs.frozen
class Host:
    """What of the host's an agent would like to change."""

    folder: Path

    def look(self) -> dict[str, dict[str, tuple[int, bytes]]]:
        return {name: tree(self.folder / name) for name in ("project", "main", "cache", "victim")}

    def git(self, *words: str, at: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*GIT, *words], cwd=self.folder / at, capture_output=True, text=True, check=False)

    @property
    def was_run(self) -> bool:
        return (self.folder / "ran").exists()


def make_host(box: Box) -> Host:
    """A worktree of a repository elsewhere, a virtual environment of files that a cache has too, and sockets."""
    host = Host(box.folder)
    for name in ("main", "cache", "victim"):
        box.new_folder(name)
    (host.folder / "victim/key").write_text("mine\n")
    (host.folder / "cache/six.py").write_text("six\n")
    assert host.git("init", "-q", at="main").returncode == 0
    for name, text in {
        ".gitignore": ".venv\n.ssh\n*.sock\nhostile\n",
        "app.py": "good\n",
        "sub/file": "mine\n",
    }.items():
        file = host.folder / "main" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert host.git("add", "--all", at="main").returncode == 0
    assert host.git("commit", "-q", "-m", "first", at="main").returncode == 0
    assert host.git("worktree", "add", "-q", "-b", "work", str(box.workspace), at="main").returncode == 0
    for folder in (".venv", ".ssh"):
        (box.workspace / folder).mkdir()
    (box.workspace / ".venv/six.py").hardlink_to(host.folder / "cache/six.py")
    (box.workspace / ".ssh/authorized_keys").write_text("mine\n")
    words = {"@RAN@": str(host.folder / "ran"), "@HOOKS@": "hooks", "@VICTIM@": str(host.folder / "victim")}
    script = HOSTILE
    for word, meaning in words.items():
        script = script.replace(word, meaning)
    (box.workspace / "hostile").write_text(script)
    for path in (host.folder / "main", *(host.folder / "main").rglob("*"), host.folder / "cache/six.py"):
        os.chown(path, *box.engine.owner, follow_symlinks=False)
    own(box)
    return host


def test_nothing_of_it_acts_on_the_host(carried: Carried) -> None:
    box = carried.box
    host = make_host(box)
    listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    try:
        for listener, name in zip(listeners, ("svc.sock", "docker.sock"), strict=True):
            listener.bind(str(box.workspace / name))
            listener.listen()
            listener.setblocking(False)
            (box.workspace / name).chmod(0o777)
        before = host.look()

        def configure() -> None:
            """The host's git puts another file in the place of the settings: no mount of the old one covers it."""
            assert host.git("config", "branch.work.remote", "origin", at="project").returncode == 0
            os.chown(host.folder / "main/.git/config", *box.engine.owner)
            before.update(host.look())

        prompt = "now\nsleep 1\nsh sh /workspace/hostile"
        summary = carried.run(prompt, meanwhile=configure, image=box.engine.images.git, env=WHO)

        for listener in listeners:
            with pytest.raises(BlockingIOError):
                listener.accept()
    finally:
        for listener in listeners:
            listener.close()
    assert summary.outcome == "succeeded", summary.message
    assert host.look() == before
    assert host.git("config", "branch.work.remote", at="main").stdout == "origin\n"
    found = carried.result(summary.run_id)
    assert (found["app.py"], found["honest"]) == ("755 evil\n", "644 tried\n")
    assert "reached" not in found
    assert not any(".git/" in name or ".ssh" in name for name in found)
    told = {path for _, path in (summary.changes.findings if summary.changes else ())}
    assert told >= {
        *("fifo", "sub", ".envrc", ".vscode/tasks.json", "bare/HEAD", "nested", "x", "app.py"),
        *("node_modules/.x", ".venv/six.py", ".ssh/authorized_keys"),
    }  # fmt: skip

    async def take() -> Applied:
        changes = await Changes.open(box.workspace, summary.run_id, box.state)
        await changes.branch("agent/work")
        return await changes.apply()

    applied = anyio.run(take)

    assert {"honest"} <= {os.fsdecode(path) for path in applied.paths} <= {"honest", "stamp", "x/f"}
    folders = [box.workspace, *(path for path in box.workspace.rglob("*") if path.is_dir() and not path.is_symlink())]
    for folder in (*folders, host.folder / "main"):
        for words in (["status"], ["diff", "HEAD"]):
            assert host.git(*words, at=str(folder.relative_to(host.folder))).returncode == 0
    for words in (["log", "-p", "agent/work"], ["add", "--all"], ["commit", "-q", "-m", "theirs"]):
        assert host.git(*words, at="project").returncode == 0
    assert host.git("rebase", "--continue", at="project").returncode != 0
    assert not host.was_run
    after = host.look()
    assert (after["cache"], after["victim"]) == (before["cache"], before["victim"])
    assert after["main"][".git/config"] == before["main"][".git/config"]
    assert not any("hooks/" in name and not name.endswith(".sample") for name in after["main"])
    carried.nothing_is_left()


def test_a_folder_that_is_swapped_for_a_link_opens_nothing(box: Box) -> None:
    """As in tests/test_swaps.py, where it is refused: here there is no mount of it that could lead elsewhere."""
    trap = Trap.make(box)
    work = "sh cat scripts/* .husky/* 2>/dev/null; echo mine >scripts/made; echo mine >.husky/made; true"

    messages = trap.armed(box.workspace / "scripts").run(work, workspace_mode="carried", carry="overlay")

    assert error_of(messages) is None, messages
    assert "the victim's key" not in tool_output(messages)
    assert not [*trap.victim.rglob("made")]
