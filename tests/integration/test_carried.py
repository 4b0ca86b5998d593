"""Carried workspaces on real engines: what an agent does comes out exactly, and the host has nothing of it.

tests/test_carrier.py has what is the same whatever the engine is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from container_runner.records.summary import RunSummary
from container_runner.runner.left import unfetched
from container_runner.workspace.carry import LAYERS, Carry
from container_runner.workspace.changes import Changes
from container_runner.workspace.shadow import Shadow
from tests.integration.engines import OWN, TODAY
from tests.integration.runs import ON_OWN_ROOTFUL, Box, on

pytestmark = on(*OWN)

WAYS = pytest.mark.parametrize("way", ["overlay", "stream"])
WHO = {f"GIT_{who}_{what}": "agent" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
GIT = ("git", "-c", "safe.directory=*", "-c", "user.name=me", "-c", "user.email=me@x", "-c", "init.defaultBranch=main")


@attrs.frozen
class Carried:
    """Makes carried runs, and reads what came out of them."""

    box: Box
    way: str

    def run(self, prompt: str, *, meanwhile: Callable[[], None] | None = None, **fields: Any) -> RunSummary:
        """A run of `sh` from start to end; *meanwhile* is called when the agent says "now"."""
        asked = {"from_run": fields.pop("from_run", None)}
        runner = self.box.runner(workspace_mode="carried", carry=self.way, **fields)
        ended: list[RunSummary] = []

        async def read() -> None:
            options = self.box.options(prompt, **asked)
            async with aclosing(runner.execute(options, on_end=lambda summary, _: ended.append(summary))) as messages:
                async for message in messages:
                    if meanwhile is not None and getattr(message, "text", "") == "now":
                        meanwhile()

        anyio.run(read)
        (summary,) = ended
        return summary

    def git(self, *words: str) -> str:
        """What git says in the shadow."""

        async def ask() -> bytes:
            shadow = await Shadow.open(self.box.workspace, self.box.state)
            return await shadow.git(*words)

        return anyio.run(ask).decode()

    def result(self, run: str) -> dict[str, str]:
        """The files that came out of a run, each with its mode's last three digits and what is in it."""
        found = {}
        for line in self.git("ls-tree", "-r", f"refs/container-runner/{run}/result").splitlines():
            facts, _, name = line.partition("\t")
            mode, _, blob = facts.split(" ")
            found[name] = f"{mode[3:]} {self.git('cat-file', 'blob', blob)}"
        return found

    def take(self, run: str, branch: str | None = None) -> None:
        """Apply all that came out of a run, findings included, and make a branch of it."""

        async def work() -> None:
            changes = await Changes.open(self.box.workspace, run, self.box.state)
            await changes.apply(["all"])
            if branch is not None:
                await changes.branch(branch)

        anyio.run(work)

    def nothing_is_left(self) -> None:
        """Of a run whose work is fetched only the shadow is left."""
        assert Carry.runs(self.box.state) == []
        assert list((self.box.state / LAYERS).glob("*")) == []
        assert self.box.engine.run("volume", "ls", "--quiet", "--filter=name=container-runner-").stdout == ""
        assert self.box.containers() == []


@pytest.fixture
def carried(box: Box, way: str) -> Carried:
    return Carried(box, way)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All below a folder, its `.git` included: modes and contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or path.is_file():
            content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
            found[str(path.relative_to(folder))] = (path.lstat().st_mode, content)
    return found


def make_files(box: Box) -> None:
    """Files that an agent will edit, delete, and leave alone."""
    for name, text in {
        "a": "1\n",
        "b": "2\n",
        "sub/c d": "3\n",
        "sub/e\nf": "4\n",
        "run": "#!/bin/sh\n",
        "old/x": "5\n",
    }.items():
        file = box.workspace / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    (box.workspace / "run").chmod(0o755)
    (box.workspace / "link").symlink_to("a")
    own(box)


def own(box: Box) -> None:
    """Give all of the workspace to the agent's user."""
    for path in (box.workspace, *box.workspace.rglob("*")):
        os.chown(path, *box.engine.owner, follow_symlinks=False)


def commit(box: Box, message: str = "first") -> str:
    """Commit all of the workspace, of which this makes a repository; that commit."""
    subprocess.run([*GIT, "init", "-q"], cwd=box.workspace, check=True)
    subprocess.run([*GIT, "add", "--all"], cwd=box.workspace, check=True)
    subprocess.run([*GIT, "commit", "-q", "-m", message], cwd=box.workspace, check=True)
    said = subprocess.run([*GIT, "rev-parse", "HEAD"], cwd=box.workspace, check=True, capture_output=True, text=True)
    own(box)
    return said.stdout.strip()


EDITS = (
    "echo more >>a; rm b; mkdir new; echo x >new/x; mv 'sub/c d' c; chmod +x a; ln -sf run link; "
    "rm -r old; mkdir old; echo y >old/y; true"
)
EDITED = {
    "a": "755 1\nmore\n",
    "c": "644 3\n",
    "new/x": "644 x\n",
    '"sub/e\\nf"': "644 4\n",
    "run": "755 #!/bin/sh\n",
    "link": "000 run",
    "old/y": "644 y\n",
}


@WAYS
def test_what_an_agent_does_comes_out_and_the_folder_is_as_it_was(
    carried: Carried, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "container_runner")
    make_files(carried.box)
    before = tree(carried.box.workspace)

    summary = carried.run(f"sh {EDITS}")

    assert (summary.outcome, summary.message) == ("succeeded", None)
    assert carried.result(summary.run_id) == EDITED
    assert tree(carried.box.workspace) == before
    assert summary.changes is not None
    assert (summary.changes.files, summary.changes.findings) == (8, ())
    assert "the box is asked" not in caplog.text
    carried.nothing_is_left()


@WAYS
@on(*TODAY)
def test_a_whole_run_on_engines_of_today(carried: Carried) -> None:
    make_files(carried.box)

    first = carried.run(f"sh {EDITS}")
    second = carried.run("sh rm c; echo again >>a", from_run=first.run_id)
    carried.take(second.run_id)

    wanted = {name: facts for name, facts in EDITED.items() if name != "c"} | {"a": "755 1\nmore\nagain\n"}
    assert carried.result(second.run_id) == wanted
    assert (carried.box.workspace / "a").read_text() == "1\nmore\nagain\n"
    assert not (carried.box.workspace / "c").exists()
    carried.nothing_is_left()


@WAYS
def test_commits_come_out_of_a_repository(carried: Carried) -> None:
    box = carried.box
    make_files(box)
    (box.workspace / ".gitignore").write_text("ignored\n")
    first = commit(box)
    (box.workspace / "ignored").write_text("secret")
    (box.workspace / "untracked").write_text("u\n")
    own(box)
    before = tree(box.workspace)
    work = (
        f"git status --short; {EDITS}; git add --all; git commit -q -m 'by the agent'; echo late >late; "
        f"git config core.fsmonitor 'touch {box.workspace}/ran'; echo x >.git/hooks/pre-commit; cat ignored || true"
    )

    summary = carried.run(f"sh {work}", image=box.engine.images.git, env=WHO)

    assert summary.outcome == "succeeded", summary.message
    others = {".gitignore": "644 ignored\n", "untracked": "644 u\n", "late": "644 late\n"}
    assert carried.result(summary.run_id) == EDITED | others
    assert tree(box.workspace) == before
    assert summary.changes is not None
    head = summary.changes.head
    assert head is not None
    assert carried.git("log", "--format=%s %P", head, "--").splitlines() == [f"by the agent {first}", "first "]
    carried.nothing_is_left()

    carried.take(summary.run_id, branch="agent/work")

    for words in (["status"], ["diff"], ["add", "--all"], ["commit", "-q", "-m", "theirs"]):
        subprocess.run([*GIT, *words], cwd=box.workspace, check=True)
    compare = [*GIT, "diff", "--name-only", "agent/work", "HEAD"]
    assert subprocess.run(compare, cwd=box.workspace, check=True, capture_output=True).stdout == b""
    assert (box.workspace / "a").read_text() == "1\nmore\n"
    assert not (box.workspace / "ran").exists()


@WAYS
def test_a_run_begins_with_what_another_has_left(carried: Carried) -> None:
    """Its files and its commits, whatever the folder is by then; and what git ignores as the folder has it."""
    box = carried.box
    make_files(box)
    (box.workspace / ".gitignore").write_text("ignored\n")
    commit(box)
    (box.workspace / "ignored").write_text("i\n")
    own(box)
    git: dict[str, Any] = {"image": box.engine.images.git, "env": WHO}
    first = carried.run(f"sh {EDITS}; git add --all; git commit -q -m 'by the agent'; echo late >late", **git)
    assert first.outcome == "succeeded", first.message
    (box.workspace / "users").write_text("u\n")
    (box.workspace / "run").unlink()
    commit(box, "theirs")
    before = tree(box.workspace)

    work = (
        "git log --format=%s >log; git status --porcelain >status; cat ignored >>log; "
        "rm new/x; echo again >>a; git add --all; git commit -q -m 'once more'; git fsck >/dev/null"
    )
    second = carried.run(f"sh {work}", from_run=first.run_id[:12], **git)

    assert second.outcome == "succeeded", second.message
    assert tree(box.workspace) == before
    ignored = "i\n" if carried.way == "overlay" else ""
    wanted = EDITED | {".gitignore": "644 ignored\n", "late": "644 late\n", "a": "755 1\nmore\nagain\n"}
    wanted |= {"log": f"644 by the agent\nfirst\n{ignored}", "status": "644 ?? late\n?? log\n?? status\n"}
    del wanted["new/x"]
    assert carried.result(second.run_id) == wanted
    assert second.changes is not None
    assert second.changes.findings == ()
    head = second.changes.head
    assert head is not None
    assert carried.git("log", "--format=%s", head, "--").splitlines() == ["once more", "by the agent", "first"]
    carried.nothing_is_left()

    carried.take(first.run_id)
    carried.take(second.run_id)

    assert (box.workspace / "a").read_text() == "1\nmore\nagain\n"
    assert (box.workspace / "users").read_text() == "u\n"
    assert not any((box.workspace / name).exists() for name in ("b", "new/x"))


@WAYS
def test_what_was_committed_in_a_submodule_comes_out(carried: Carried) -> None:
    box = carried.box
    make_files(box)
    library = box.new_folder("library")
    (library / "l").write_text("1\n")
    for words in (["init", "-q"], ["add", "l"], ["commit", "-qm", "first"]):
        subprocess.run([*GIT, *words], cwd=library, check=True)
    commit(box)
    words = ["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "mod"]
    subprocess.run([*GIT, *words], cwd=box.workspace, check=True)
    commit(box, "with a submodule")
    own(box)

    work = "cd mod; echo 2 >l; git commit -qam within; cd ..; git commit -qam around; git fsck >/dev/null"
    summary = carried.run(f"sh {work}", image=box.engine.images.git, env=WHO)

    assert summary.outcome == "succeeded", summary.message
    assert summary.changes is not None
    assert summary.changes.findings == ()
    carried.nothing_is_left()

    carried.take(summary.run_id, branch="agent")

    def said(*words: str) -> str:
        return subprocess.run([*GIT, *words], cwd=box.workspace, check=True, capture_output=True, text=True).stdout

    assert said("-C", "mod", "log", "--format=%s", "agent") == "within\nfirst\n"
    assert said("-C", "mod", "rev-parse", "agent") == said("rev-parse", "agent:mod")
    assert (box.workspace / "mod/l").read_text() == "2\n"


KILLED = """
import anyio, sys
from contextlib import aclosing
from container_runner import *
async def main(engine, image, workspace, state, way):
    config = ContainerConfig(engine=engine, image=image, network="none", credentials="none", workspace_mode="carried",
                             carry=way)
    runner = ContainerRunner(ClaudeRuntime(), config, state)
    agent = Agent(name="tester", workspace=workspace)
    options = ExecuteOptions(prompt="sh echo x >c; rm a\\nhere\\nsleep 100", agent=agent)
    async with aclosing(runner.execute(options)) as messages:
        async for message in messages:
            print(getattr(message, "text", ""), flush=True)
anyio.run(main, *sys.argv[1:])
"""


@contextlib.contextmanager
def at_work(carried: Carried) -> Iterator[subprocess.Popen[str]]:
    """Another process with a run whose agent has written a file and deleted another."""
    box = carried.box
    words = [box.engine.binary, box.engine.images.tiny, str(box.workspace), str(box.state), carried.way]
    with subprocess.Popen([sys.executable, "-c", KILLED, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any(line == "here\n" for line in process.stdout)
            yield process
        finally:
            process.kill()


@ON_OWN_ROOTFUL
@pytest.mark.parametrize(("who", "way"), [("we", "overlay"), ("we", "stream"), ("container", "stream")])
def test_what_is_killed_is_fetched(carried: Carried, who: str) -> None:
    make_files(carried.box)

    with at_work(carried) as process:
        (run,) = Carry.runs(carried.box.state)
        if who == "we":
            os.kill(process.pid, signal.SIGKILL)
        else:
            (container,) = carried.box.containers()
            carried.box.engine.run("kill", "--signal=KILL", container)
        process.wait()
        assert [carry.run for carry in unfetched(carried.box.state)] == ([run] if who == "we" else [])
    carried.run("sh echo y >d")

    found = carried.result(run)
    assert found["c"] == "644 x\n"
    assert "a" not in found
    assert "b" in found
    carried.nothing_is_left()


HOSTILE = (
    "rm -rf sub; ln -s {victim} sub; echo taken >sub/file; echo taken >hard; "
    "mkfifo fifo; mkdir -p nested/.git; echo '[core] fsmonitor = touch /tmp/ran' >nested/.git/config; "
    "mkdir x; echo gitdir: /etc >x/.git; true"
)


@WAYS
def test_nothing_of_the_host_is_reached(carried: Carried) -> None:
    """Links out of the folder, a file that is a file elsewhere too, a socket, and what git would obey."""
    box = carried.box
    make_files(box)
    victim = box.new_folder("victim")
    (victim / "file").write_text("mine\n")
    (victim / "other").write_text("mine\n")
    (box.workspace / "hard").hardlink_to(victim / "other")
    own(box)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(box.workspace / "socket"))
        (box.workspace / "socket").chmod(0o777)
        before, theirs = tree(box.workspace), tree(victim)

        summary = carried.run(f"sh {HOSTILE.format(victim=victim)}")

    assert summary.outcome == "succeeded", summary.message
    assert tree(victim) == theirs
    assert tree(box.workspace) == before
    assert summary.changes is not None
    told = {path for _, path in summary.changes.findings}
    assert {"fifo", "sub"} <= told
    found = carried.result(summary.run_id)
    assert found["hard"] == "644 taken\n"
    assert not any(".git" in name for name in found)
    carried.nothing_is_left()

    carried.take(summary.run_id)

    assert tree(victim) == theirs
    assert (box.workspace / "hard").read_text() == "taken\n"
    assert (box.workspace / "sub").readlink() == victim
