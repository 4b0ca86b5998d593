"""The way into an overlay that begins with what an earlier run has left, with real programs on its side."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from container_runner.stream.pipe import open_pipe
from container_runner.workspace.patch import PATCH, is_other, patch, spelled
from container_runner.workspace.shadow import Shadow, Start
from tests.workspace.conftest import Box, Git, files

pytestmark = pytest.mark.anyio


async def laid(box: Box, work: Path, programs: str) -> tuple[Start, str]:
    """Have the box begin with what run "r" has left, above the folder as it is; that, and what is below."""
    start = await box.shadow.left_by("r")
    assert start is not None
    below = await box.shadow.start("s", start)
    assert await is_other(box.shadow, start, below)
    shutil.rmtree(box.folder)
    shutil.copytree(work, box.folder, symlinks=True)
    argv = ["sh", "-c", PATCH, "sh", str(box.folder)]
    async with open_pipe(argv, env={"PATH": programs}, stdin=patch(box.shadow, start, below)) as pipe:
        assert [chunk async for chunk in pipe] == []
        assert await pipe.wait() == 0, pipe.stderr
    return start, below


EDITS = r"""
echo 1 >new; chmod 755 new; git add new; git commit -qm second; echo 2 >new
rm -r sub; echo file >sub; rm link; mkdir -p link/deep; echo x >link/deep/x; echo y >"./-rf
y"
"""


async def test_it_begins_with_what_the_run_has_left(
    work: Path, state: Path, user: Git, box: Box, programs: str
) -> None:
    (work / ".git/info/exclude").write_text("ignored\n")
    (work / "ignored").write_text("mine\n")
    box.shadow = await Shadow.open(work, state)
    box.sh(EDITS)
    await box.out()
    (work / "a").write_text("changed by the user since\n")
    (work / "users").write_text("users\n")
    user("add", "--all")
    user("commit", "-qm", "theirs")

    start, below = await laid(box, work, programs)
    box.sh("git log --format=%s >../log; git status --porcelain >../status; git fsck")

    assert (box.folder.parent / "log").read_text() == "second\nfirst\n"
    status = (box.folder.parent / "status").read_text().splitlines()
    assert status == [" D link", " M new", " D sub/b", '?? "-rf\\ny"', "?? sub"]
    assert (box.folder / "ignored").read_text() == "mine\n"
    outcome = await box.out(before=False, overlay=True, run="s", start=start, below=below)
    assert await files(box.shadow, outcome.result) == await files(box.shadow, start.files)
    assert {found.path for found in outcome.findings} <= {b"ignored"}  # a copy has a time of its own
    assert await box.shadow.ref("s", "head") == start.head


async def test_what_is_done_then_comes_out_on_top_of_it(work: Path, box: Box, programs: str) -> None:
    box.sh(EDITS)
    await box.out()
    (work / "a").unlink()
    (work / "users").write_text("users\n")

    start, below = await laid(box, work, programs)
    box.sh("rm new; rm -r link; echo more >>a; git add a; git commit -qm third a; rm -rf .git/hooks")
    outcome = await box.out(before=False, overlay=True, run="s", start=start, below=below)

    found = {name: content for name, (_, content) in (await files(box.shadow, outcome.result)).items()}
    assert found == {"a": b"a\nmore\n", "sub": b"file\n", "-rf\ny": b"y\n"}
    head = await box.shadow.ref("s", "head")
    assert head is not None
    said = await box.shadow.git("log", "--format=%s", head, "--")
    assert said.split() == [b"third", b"second", b"first"]
    parents = await box.shadow.git("rev-list", "--first-parent", outcome.result)
    assert parents.split()[1].decode() == start.files


async def test_commits_stay_where_the_box_has_lost_them(work: Path, box: Box, programs: str) -> None:
    box.sh("echo 1 >new; git add new; git commit -qm second")
    await box.out()

    start, below = await laid(box, work, programs)
    box.sh("rm -rf .git")
    await box.out(before=False, overlay=True, run="s", start=start, below=below)

    assert await box.shadow.ref("s", "head") == start.head


async def test_what_was_ignored_stays_ignored_whatever_an_earlier_agent_says(
    work: Path, user: Git, box: Box, programs: str
) -> None:
    (work / ".gitignore").write_text(".env\n")
    user("add", "-A")
    user("commit", "-qm", "rules")
    (work / ".env").write_text("secret\n")
    await box.shadow.start("r")
    (box.folder / ".gitignore").write_text("!.env\n")
    await box.out(before=False)

    start, below = await laid(box, work, programs)
    box.sh("echo changed >.env")
    outcome = await box.out(before=False, overlay=True, run="s", start=start, below=below)

    assert ".env" not in await files(box.shadow, outcome.result)
    assert {(found.kind, found.path) for found in outcome.findings} <= {("ignored file changed", b".env")}


def test_any_name_goes_through_a_line(programs: str, tmp_path: Path) -> None:
    names = [b" a", b"-rf", b"b\\0141\\c", b"n\n\n", b"%s%%", b"\xff", b"'\"$(x) ", b"~"]
    script = """IFS= read -r line; printf '%b' "$line" | tr '\\0' '/'; cat"""
    told = subprocess.run(
        ["sh", "-c", script],
        env={"PATH": f"{programs}:/usr/bin"},
        input=spelled(names) + b"\nrest",
        stdout=subprocess.PIPE,
    )

    assert told.stdout == b"".join(b"%s/" % name for name in sorted(names)) + b"rest"


async def test_a_folder_that_is_so_already_needs_none(work: Path, box: Box) -> None:
    start = await box.shadow.hold()

    assert not await is_other(box.shadow, start, await box.shadow.start("s", start))
    (work / "a").write_text("other\n")
    assert await is_other(box.shadow, start, await box.shadow.start("t", start))
    base = await box.shadow.ref("t", "base")
    assert base is not None
    assert (await files(box.shadow, base))["a"][1] == b"a\n"
    assert os.fspath(box.shadow.workspace) == str(work)
