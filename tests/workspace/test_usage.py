"""How much room folders take, whatever an agent makes of them."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from container_runner.workspace import usage
from container_runner.workspace.usage import StoppedError, TooMuchError, used

KIB = 1024


def total(*folders: Path) -> int:
    return sum(used(map(str, folders)).values())


def du(folder: Path) -> int:
    said = subprocess.run(["du", "-s", "--block-size=1", folder], check=True, capture_output=True, text=True)
    return int(said.stdout.split()[0])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  a folder of the kernel's


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    for name in ("a/b/c", "a/d", "e"):
        (folder / name).mkdir(parents=True)
    for number, name in enumerate(("f", "a/f", "a/b/f", "a/b/c/f", "e/f"), 1):
        (folder / name).write_bytes(b"x" * number * 100 * KIB)
    return folder


def test_it_is_what_du_says(folder: Path) -> None:
    before = descriptors()

    assert total(folder) == du(folder) > 1500 * KIB
    assert descriptors() == before


def test_a_folder_in_another_one_counts_once(folder: Path) -> None:
    assert used([str(folder / "a"), str(folder), str(folder / "a/b"), str(folder)]) == {str(folder): du(folder)}


def test_a_file_is_a_place_too_and_what_is_not_there_takes_nothing(folder: Path) -> None:
    assert used([str(folder / "f"), str(folder / "none")]) == {
        str(folder / "f"): (folder / "f").stat().st_blocks * 512, str(folder / "none"): 0,
    }  # fmt: skip


def test_no_link_is_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/big").write_bytes(b"x" * 4096 * KIB)
    before = total(folder)

    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "file").symlink_to(tmp_path / "elsewhere/big")
    (folder / "loop").symlink_to(".")
    top = tmp_path / "top"
    top.symlink_to(tmp_path / "elsewhere")

    assert total(folder) < before + 64 * KIB
    assert total(top) < 64 * KIB


def test_a_folder_that_becomes_a_link_while_it_is_looked_at_is_left_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/big").write_bytes(b"x" * 4096 * KIB)
    swapped = False

    def swap() -> bool:
        nonlocal swapped
        for name in () if swapped else ("a", "e"):
            (folder / name).rename(tmp_path / name)
            (folder / name).symlink_to(tmp_path / "elsewhere")
        swapped = True
        return False

    assert sum(used([str(folder)], swap).values()) < 2048 * KIB


def test_what_is_removed_while_it_is_looked_at_is_no_failure(folder: Path) -> None:
    def remove() -> bool:
        subprocess.run(["rm", "-rf", *map(str, folder.iterdir())], check=True)
        return False

    assert sum(used([str(folder)], remove).values()) < 2048 * KIB


def test_a_file_counts_as_what_it_takes_and_once(folder: Path) -> None:
    before = total(folder)
    with (folder / "sparse").open("wb") as file:
        file.truncate(1024**4)
    os.mkfifo(folder / "pipe")
    for number in range(20):
        os.link(folder / "f", folder / f"link-{number}")

    assert total(folder) < before + 64 * KIB


def test_a_tree_that_is_too_large_is_told_and_nothing_stays_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    monkeypatch.setattr(usage, "MOST_ENTRIES", 5)

    with pytest.raises(TooMuchError, match="more than 5 files"):
        total(folder)

    assert descriptors() == before


@pytest.mark.parametrize("deep", [99, 100, 3000])
def test_a_tree_that_is_too_deep_is_told_and_nothing_stays_open(deep: int) -> None:
    before = descriptors()
    place = tempfile.mkdtemp()
    try:
        at = os.open(place, os.O_RDONLY)
        for _ in range(deep):
            os.mkdir("d", dir_fd=at)
            outer, at = at, os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(outer)
        os.close(at)
        if deep < 100:
            assert total(Path(place)) > 0
        else:
            with pytest.raises(TooMuchError, match="deep"):
                total(Path(place))
        assert descriptors() == before
    finally:
        subprocess.run(["rm", "-rf", place], check=True)  # which knows no depth


def test_who_does_not_wait_any_more_is_not_kept(folder: Path) -> None:
    before = descriptors()

    with pytest.raises(StoppedError):
        used([str(folder)], lambda: True)

    assert descriptors() == before


def test_what_we_may_not_read_is_left_out_and_what_we_lack_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, code = os.open, errno.EACCES

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "a":
            raise OSError(code, os.strerror(code))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)
    assert total(folder) < 700 * KIB
    code, before = errno.EMFILE, descriptors()

    with pytest.raises(OSError, match="Too many open files"):
        total(folder)

    assert descriptors() == before
