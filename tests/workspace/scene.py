"""A user's folder, and what an agent is said to have made of it: the shadow as a run leaves it, without an engine."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import anyio

from container_runner.workspace.changes import Changes
from container_runner.workspace.shadow import Shadow

RUN = "0123456789abcdef"

Edit = Callable[[Path], object]
"""What somebody does in a folder."""

LINES = "1\n2\n3\n4\n5\n6\n7\n8\n"
FILES = {
    "a": LINES,
    "b": "b\n",
    "sub/c": "c\n",
    "sub/deep/d": "d\n",
    "e f": "e\n",
    "run": "#!/bin/sh\n",
}
"""A small project."""


def git(
    folder: Path, *words: str, stdin: bytes = b"", env: dict[str, str] | None = None, ok: tuple[int, ...] = (0,)
) -> str:
    """Git as a user has it: with hooks, filters and all."""
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    (home / ".gitconfig").write_text("[user]\nname = U\nemail = u@x\n[init]\ndefaultBranch = main\n")
    variables = {"PATH": os.environ["PATH"], "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1", **(env or {})}
    done = subprocess.run(["git", *words], cwd=folder, env=variables, input=stdin, capture_output=True)
    assert done.returncode in ok, done.stderr
    return done.stdout.decode()


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def commit(folder: Path, message: str = "more") -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", message)


def everything(box: Path) -> None:
    """Each kind of change that there is."""
    (box / "a").write_text("1\n2\n3\n4\n5\n6\n7\neight\n")
    (box / "b").unlink()
    write(box, {"new/one/x": "x\n", "new/y": "y\n", "sub/c": "C\n"})
    (box / "run").chmod(0o755)
    (box / "way").symlink_to("new/y")
    (box / "sub/deep/d").unlink()
    (box / "sub/deep").rmdir()
    (box / "sub/deep").write_text("a file now\n")
    (box / "e f").unlink()
    write(box, {"e f/g": "a folder now\n", "bin\udcff": "\x00\x01"})
    (box / "blob").write_bytes(bytes(range(256)) * 3000)


def make_folder(at: Path, files: dict[str, str], *, is_repository: bool = True) -> Path:
    """A folder, with all in it committed."""
    at.mkdir(parents=True)
    write(at, files)
    if is_repository:
        git(at, "init", "-q")
        commit(at, "first")
    return at


def look(folder: Path) -> dict[str, tuple[str, str]]:
    """All that is in a folder, byte for byte and mode for mode; also empty folders, and of `.git` what matters."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name, facts = str(path.relative_to(folder)), path.lstat()
        if name.startswith(".git/") and not name.startswith((".git/index", ".git/HEAD", ".git/refs/", ".git/config")):
            continue
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_dir():
            content = "/"
        else:
            content = path.read_bytes().hex()
        mode = "link" if path.is_symlink() else f"{stat.S_IMODE(facts.st_mode):o}"
        found[name] = (mode, content)
    return found


def _files(folder: Path) -> set[bytes]:
    """The files and links in a folder, but in a `.git`."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {os.fsencode(path.relative_to(folder)) for path in found if ".git" not in path.relative_to(folder).parts}


async def ran(workspace: Path, state: Path, edit: Edit, run: str = RUN, after: str | None = None) -> Shadow:
    """The shadow after a run in which *edit* was done to a copy of the workspace, or of what run *after* has left."""
    shadow = await Shadow.open(workspace, state)
    start = None if after is None else await shadow.left_by(after)
    await shadow.start(run, start)
    copy = state / f"box-{run}"
    if start is None:
        shutil.copytree(workspace, copy, symlinks=True)
    else:
        copy.mkdir()
        await anyio.run_process(["tar", "-x"], cwd=copy, input=await shadow.git("archive", start.files))
    edit(copy)
    base, user = await shadow.ref(run, "base"), await shadow.ref(run, "user")
    git_dir = shadow.folder / "shadow.git"
    env = {"GIT_DIR": str(git_dir), "GIT_WORK_TREE": str(copy), "GIT_INDEX_FILE": str(state / "scene-index")}
    held = (await shadow.git("ls-tree", "-r", "-z", "--name-only", str(base))).split(b"\0")
    ignored = _files(workspace) - {*held}
    files = _files(copy) - ignored
    (state / "scene-index").unlink(missing_ok=True)
    git(copy, "update-index", "--add", "-z", "--stdin", stdin=b"".join(b"%s\0" % file for file in files), env=env)
    tree = git(copy, "write-tree", env=env).strip()
    parent = str(base) if start is None else start.files
    result = (await shadow.git("commit-tree", tree, "-p", parent, "-m", "The work")).decode().strip()
    await shadow.set_refs(run, {"result": result})
    has_git = shadow.is_repository and (copy / ".git").exists()
    if has_git and git(copy, "rev-parse", "-q", "--verify", "HEAD", ok=(0, 1)).strip() not in ("", user):
        off = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
        git(copy, *off, "push", "-q", str(git_dir), f"HEAD:refs/container-runner/{run}/head")
    shutil.rmtree(copy)
    return shadow


async def changes_of(workspace: Path, state: Path, edit: Edit, run: str = RUN, *, after: str | None = None) -> Changes:
    return await Changes.load(await ran(workspace, state, edit, run, after), run)
