"""What the tests of a carried workspace share: a user with repositories, and a box that is a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from container_runner.stream.pipe import open_pipe
from container_runner.workspace.manifest import MANIFEST, Facts, Manifest
from container_runner.workspace.shadow import Shadow, Start
from container_runner.workspace.tar import Source
from container_runner.workspace.way_out import OUT, Outcome, receive

Git = Callable[..., str]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def user(tmp_path: Path) -> Git:
    """The git of a user with a configuration of their own, in the folder `work` if no other is named."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text('[user]\nname = U\nemail = u@x\n[protocol "file"]\nallow = always\n')

    def git(*words: str, at: str | Path = "work", stdin: bytes = b"") -> str:
        folder = tmp_path / at
        folder.mkdir(exist_ok=True)
        env = {"PATH": os.environ["PATH"], "HOME": str(home)}
        done = subprocess.run(["git", *words], cwd=folder, env=env, input=stdin, capture_output=True, check=True)
        return done.stdout.decode()

    return git


@pytest.fixture
def work(tmp_path: Path, user: Git) -> Path:
    """A repository with a commit of `a`, `sub/b` and a link."""
    user("init", "-q", "-b", "main")
    folder = tmp_path / "work"
    (folder / "sub").mkdir()
    (folder / "a").write_text("a\n")
    (folder / "sub/b").write_text("b\n")
    (folder / "link").symlink_to("a")
    user("add", "-A")
    user("commit", "-qm", "first")
    return folder


async def files(shadow: Shadow, tree: str) -> dict[str, tuple[str, bytes]]:
    """What is in a tree: the mode and the content of each path."""
    said = await shadow.git("ls-tree", "-r", "-z", tree)
    found = {}
    for line in said.split(b"\0")[:-1]:
        head, _, name = line.partition(b"\t")
        mode, _, blob = head.decode().split(" ")
        found[os.fsdecode(name)] = (mode, await shadow.git("cat-file", "blob", blob))
    return found


class Box:
    """A folder that is what a box would see, and the programs in it."""

    def __init__(self, shadow: Shadow, folder: Path, path: str) -> None:
        self.shadow = shadow
        self.folder = folder
        self.before: dict[bytes, Facts] = {}
        self._env = {"PATH": path, "HOME": "/nonexistent"}

    def sh(self, script: str) -> None:
        """What the agent does."""
        env = self._env | {f"GIT_{who}_{what}": "a@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        subprocess.run(["sh", "-ec", script], cwd=self.folder, env=env, check=True, capture_output=True)

    async def remember(self) -> None:
        """Have the manifest made, before the agent begins."""
        async with open_pipe(["sh", "-c", MANIFEST, "sh", str(self.folder)], env=self._env) as pipe:
            manifest = Manifest(Source(aiter(pipe), 2**30))
            async for records in manifest.records():
                self.before |= records

    async def out(
        self,
        *,
        before: bool = True,
        overlay: bool = False,
        may_be_empty: bool = False,
        run: str = "r",
        start: Start | None = None,
        below: str | None = None,
    ) -> Outcome:
        """The way out."""
        argv = ["sh", "-c", OUT, "sh", str(self.folder)]
        async with open_pipe(argv, env=self._env, stdin=None) as pipe:
            known = self.before if before else None
            return await receive(
                self.shadow,
                run,
                pipe,
                before=known,
                overlay=overlay,
                start=start,
                below=below,
                may_be_empty=may_be_empty,
            )


@pytest.fixture
def programs(anyio_backend: str, tmp_path: Path) -> str:
    """A PATH: with GNU's find, tar and xargs on asyncio, with busybox's on trio; with the same git."""
    busybox = shutil.which("busybox")
    if anyio_backend == "asyncio" or busybox is None:
        return os.environ["PATH"]
    folder = tmp_path / "bin"
    folder.mkdir()
    names = [
        "sh",
        "find",
        "tar",
        "xargs",
        "head",
        "chmod",
        "rmdir",
        "cat",
        "mv",
        "rm",
        "mkdir",
        "cp",
        "ln",
        "mkfifo",
        "touch",
    ]
    for name in names:
        (folder / name).symlink_to(busybox)
    git = shutil.which("git")
    assert git is not None
    (folder / "git").symlink_to(git)
    return str(folder)


@pytest.fixture
async def box(work: Path, state: Path, tmp_path: Path, programs: str) -> Box:
    """A box with a copy of `work`, of run "r"."""
    shadow = await Shadow.open(work, state)
    await shadow.start("r")
    folder = tmp_path / "box"
    shutil.copytree(work, folder, symlinks=True)
    made = Box(shadow, folder, programs)
    await made.remember()
    return made
