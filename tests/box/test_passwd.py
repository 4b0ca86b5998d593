"""The line of a user whom an image does not know: in the text, in the state folder, and as a shell asks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from container_runner.box import script
from container_runner.box.passwd import Passwd, with_line
from container_runner.box.user import User
from container_runner.config import paths
from container_runner.errors import StateError
from container_runner.quantities import DAY

USER = User(4242, 77)
OURS = f"agent:x:4242:77:agent:{paths.HOME}:/bin/sh\n".encode()
ROOT = b"root:x:0:0:root:/root:/bin/sh\n"
ONE, TWO = "1" * 64, "2" * 64

WITHOUT = {
    "nothing": b"",
    "others": ROOT,
    "the same number as a gid": b"a:x:1:4242::/:/bin/sh\n",
    "the same number as a name": b"4242:x:1:1::/:/bin/sh\n",
    "the beginning of it": b"a:x:42:1::/:/bin/sh\nb:x:42420:1::/:/bin/sh\n",
    "a comment": b"#a:x:4242:1::/:/bin/sh\n",
    "an order to NIS": b"+a:x:4242:1::/:/bin/sh\n-b:x:4242:1::/:/bin/sh\n",
    "no name": b":x:4242:1::/:/bin/sh\n",
    "odd bytes": b"\xff\xfe\x80:\xc3:\xb5:\n\x01\n:::::::\n\n\n",
    "no newline at its end": ROOT[:-1],
}
WITH = {
    "once": ROOT + b"me:x:4242:1::/:/bin/sh\n",
    "twice": b"me:x:4242:1::/:/bin/sh\nyou:x:4242:2::/:/bin/sh\n",
    "first": b"me:x:4242:1::/:/bin/sh\n" + ROOT,
    "last, without a newline": ROOT + b"me:x:4242:1::/:/bin/sh",
    "with blanks before it": b"  me:x:4242:1::/:/bin/sh\n",
    "short": b"me:x:4242\n",
    "behind odd bytes": b"\xff\xfe\n\x80:\n" + b"me:x:4242:1::/:/bin/sh\n",
}


@pytest.mark.parametrize("content", WITHOUT.values(), ids=WITHOUT)
def test_a_line_is_added_behind_what_the_image_has(content: bytes) -> None:
    between = b"" if content.endswith(b"\n") or not content else b"\n"

    assert with_line(content, USER, paths.HOME) == content + between + OURS


@pytest.mark.parametrize("content", WITH.values(), ids=WITH)
def test_a_user_who_has_a_line_gets_none(content: bytes) -> None:
    assert with_line(content, USER, paths.HOME) is None


def test_the_name_is_nobody_elses() -> None:
    taken = b"agent:x:1:1::/:/bin/sh\n"
    also = b"agent-4242:x:2:2::/:/bin/sh\n"

    assert (with_line(taken, USER, "/h") or b"").endswith(b"\nagent-4242:x:4242:77:agent:/h:/bin/sh\n")
    assert (with_line(taken + also, USER, "/h") or b"").endswith(b"\nagent-4242-77:x:4242:77:agent:/h:/bin/sh\n")
    assert with_line(b"", User(0, 0), "/root") == b"root:x:0:0:agent:/root:/bin/sh\n"


def known(state: Path, *, image: str = "my/image", engine: str = "", home: str = paths.HOME) -> Passwd:
    return Passwd.known(state, engine=engine, image=image, user=USER, home=home)


def test_what_is_kept_is_known_from_then_on(tmp_path: Path) -> None:
    first = known(tmp_path)
    assert (first.image, first.is_given, first.mount) == ("", False, None)

    first.keep(ONE, ROOT)

    found = known(tmp_path)
    assert (found.image, found.is_given) == (ONE, True)
    assert found.mount is not None
    assert (found.mount.target, found.mount.read_only) == ("/etc/passwd", True)
    assert Path(found.mount.source).read_bytes() == ROOT + OURS
    assert Path(found.mount.source).stat().st_mode & 0o777 == 0o644
    for other in (known(tmp_path, image="b"), known(tmp_path, engine="ssh://there"), known(tmp_path, home="/h")):
        assert other.image == ""


@pytest.mark.parametrize("content", [None, b"me:x:4242:1::/:/bin/sh\n"], ids=["nothing to be used", "a line"])
def test_an_image_that_can_not_be_helped_is_known_too(tmp_path: Path, content: bytes | None) -> None:
    known(tmp_path).keep(ONE, content)

    assert (known(tmp_path).image, known(tmp_path).is_given, known(tmp_path).mount) == (ONE, False, None)


def test_the_image_that_was_looked_at_last_counts_and_no_file_is_written_anew(tmp_path: Path) -> None:
    known(tmp_path).keep(ONE, ROOT)
    inode = (known(tmp_path).folder / ONE).stat().st_ino
    known(tmp_path).keep(TWO, b"")
    assert known(tmp_path).image == TWO

    known(tmp_path).keep(ONE, ROOT)

    assert known(tmp_path).image == ONE
    assert (known(tmp_path).folder / ONE).stat().st_ino == inode, "or the kernel lifts the mount of it"


def test_what_nobody_can_be_about_to_mount_goes(tmp_path: Path) -> None:
    for image in (ONE, TWO):
        known(tmp_path).keep(image, ROOT)
    for image, age in ((ONE, 3 * DAY), (TWO, 2 * DAY)):
        file = known(tmp_path).folder / image
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime - age))

    known(tmp_path).keep("3" * 64, ROOT)

    assert sorted(path.name for path in known(tmp_path).folder.iterdir()) == [TWO, "3" * 64]


def test_what_somebody_has_put_there_is_not_taken_for_ours(tmp_path: Path) -> None:
    subject = known(tmp_path)
    subject.folder.mkdir(parents=True)
    (subject.folder / ONE).symlink_to("/etc/shadow")
    (subject.folder / TWO).mkdir()
    (subject.folder / "note").write_text("x")

    assert known(tmp_path).image == ""


@pytest.mark.parametrize("home", ["relative", "/a:b", "/a\nb", ""])
def test_a_home_that_a_line_can_not_hold_is_not_in_it(tmp_path: Path, home: str) -> None:
    assert known(tmp_path, home=home).home == paths.HOME


def test_a_state_folder_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("in the way")

    with pytest.raises(StateError, match="can not be written"):
        known(tmp_path).keep(ONE, ROOT)


@pytest.fixture(params=["dash", "bash", "busybox"])
def shell(request: pytest.FixtureRequest) -> list[str]:
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name} here")
    return [name, "sh"] if name == "busybox" else [name]


def is_named(shell: list[str], etc: Path) -> bool:
    """What a box says of the user, whose /etc this is."""
    text = script.NAMED.replace("/etc/passwd", str(etc / "passwd")).replace("-h /etc ", f"-h {etc} ")
    done = subprocess.run([*shell, "-c", text, "sh", "4242"], check=False, capture_output=True)
    assert done.returncode in (0, script.EXIT_NAMELESS)
    assert done.stdout + done.stderr == b""
    return done.returncode == 0


@pytest.mark.parametrize("content", [*WITHOUT.values(), *WITH.values()], ids=[*WITHOUT, *WITH])
def test_a_box_and_we_read_a_file_alike(shell: list[str], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "passwd").write_bytes(content)

    assert is_named(shell, tmp_path) == (with_line(content, USER, paths.HOME) is None)


def test_a_box_asks_for_a_line_only_where_a_file_can_be_mounted(shell: list[str], tmp_path: Path) -> None:
    for name in ("none", "link", "broken", "folder", "pipe", "real"):
        (tmp_path / name).mkdir()
    (tmp_path / "real/passwd").write_bytes(ROOT)
    (tmp_path / "link/passwd").symlink_to(tmp_path / "real/passwd")
    (tmp_path / "broken/passwd").symlink_to("nowhere")
    (tmp_path / "folder/passwd").mkdir()
    os.mkfifo(tmp_path / "pipe/passwd")
    (tmp_path / "behind").symlink_to("real")

    found = {path.name: is_named(shell, path) for path in tmp_path.iterdir()}

    assert found == {
        "none": False, "real": False, "link": True, "broken": True, "folder": True, "pipe": True, "behind": True,
    }  # fmt: skip
