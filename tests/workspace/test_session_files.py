"""The files of sessions, there and back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from container_runner.errors import StateError, WorkspaceError
from container_runner.workspace import tar
from container_runner.workspace.session_files import LARGEST, pack, unpack
from container_runner.workspace.tar import END, Source

KEPT = {"projects/-workspace": "projects/-srv-x"}


class Stream:
    """Some bytes, as they come."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = iter(parts)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        raise StopAsyncIteration


async def test_what_is_packed_here_is_unpacked_there(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "projects/-workspace/deep").mkdir(parents=True)
    there.mkdir()
    (here / "projects/-workspace/a.jsonl").write_bytes(b"a" * 70_000)
    (here / "projects/-workspace/deep/b").write_bytes(b"")
    (here / "other").write_text("not kept")
    (here / "projects/-workspace/link").symlink_to("/etc/passwd")
    os.mkfifo(here / "projects/-workspace/fifo")

    count = await unpack(Source(pack(here, KEPT), 10**6), there, {"projects/-srv-x": "projects/-srv-x"})

    assert count == 2
    assert (there / "projects/-srv-x/a.jsonl").read_bytes() == b"a" * 70_000
    assert sorted(path.name for path in there.rglob("*")) == ["-srv-x", "a.jsonl", "b", "deep", "projects"]


async def test_all_of_it_is_packed_where_all_is_kept(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "db").write_text("x")

    assert await unpack(Source(pack(here, {".": "."}), 10**6), there, {".": "."}) == 1
    assert (there / "db").read_text() == "x"


@pytest.mark.parametrize(
    "name", [b"../x", b"/x", b"projects/-srv-x/../../../x", b"projects/-srv-x", b"projects/else", b"", b"a//b"]
)
async def test_no_other_name_is_taken(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "there").mkdir()

    assert await unpack(Source(Stream(tar.file(name, b"x"), END), 10**6), tmp_path / "there", KEPT) == 0
    assert not [*tmp_path.rglob("x")]


async def test_several_archives_are_read_as_one(tmp_path: Path) -> None:
    one = tar.file(b"projects/-srv-x/a", b"1") + END
    two = tar.file(b"./projects/-srv-x/b", b"2") + END

    assert await unpack(Source(Stream(one, two), 10**6), tmp_path, KEPT) == 2
    assert (tmp_path / "projects/-workspace/b").read_text() == "2"


async def test_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "victim").mkdir()
    (tmp_path / "there/projects").symlink_to(tmp_path / "victim")

    with pytest.raises(StateError):
        await unpack(Source(Stream(tar.file(b"projects/-srv-x/a", b"x"), END), 10**6), tmp_path / "there", KEPT)

    assert not [*(tmp_path / "victim").iterdir()]


async def test_a_stream_that_is_cut_off_or_none_is_refused(tmp_path: Path) -> None:
    whole = tar.file(b"projects/-srv-x/a", b"x" * 2000)
    for data, limit in ((whole[:700], 10**6), (b"\1" * 512, 10**6), (whole, 1000)):
        with pytest.raises(WorkspaceError):
            await unpack(Source(Stream(data), limit), tmp_path, KEPT)

    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("part", [b"a\0b", b"a/" * 30 + b"b"])
async def test_a_name_that_no_file_here_can_have_is_left_out(tmp_path: Path, part: bytes) -> None:
    # A NUL is in the name only where it travels as a long one.
    name = b"projects/-srv-x/" + b"x" * 100 + part
    good = tar.file(b"projects/-srv-x/a", b"1")

    assert await unpack(Source(Stream(tar.file(name, b"x"), good, END), 10**6), tmp_path, KEPT) == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a"]


@pytest.mark.parametrize("error", [ValueError("embedded null byte"), OSError(28, "No space left on device")])
async def test_what_can_not_be_written_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def mkdir(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(StateError):
        await unpack(Source(Stream(tar.file(b"projects/-srv-x/a", b"1"), END), 10**6), tmp_path, KEPT)


async def test_a_file_is_written_as_it_comes(tmp_path: Path) -> None:
    whole = tar.file(b"projects/-srv-x/a", b"x" * 100_000)
    seen: list[int] = []

    async def slowly() -> AsyncIterator[bytes]:
        for start in range(0, len(whole), 512):
            seen.append(sum(path.stat().st_size for path in tmp_path.rglob("*.part")))
            yield whole[start : start + 512]
        yield END

    assert await unpack(Source(slowly(), 10**6), tmp_path, KEPT) == 1
    assert max(seen) > 80_000
    assert [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()] == [100_000]


async def test_a_file_that_is_too_large_is_neither_taken_nor_sent(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "projects/-workspace").mkdir(parents=True)
    there.mkdir()
    (here / "projects/-workspace/large").touch()
    os.truncate(here / "projects/-workspace/large", LARGEST + 1)

    assert await unpack(Source(pack(here, KEPT), 10**6), there, {"projects/-srv-x": "projects/-srv-x"}) == 0
    head = tar.member(b"projects/-srv-x/a", size=LARGEST + 1)
    with pytest.raises(WorkspaceError, match="more than"):
        await unpack(Source(Stream(head), 10**6), there, KEPT)


async def test_a_tree_of_any_depth_is_packed_as_far_as_it_is_taken(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "projects/-workspace").mkdir(parents=True)
    there.mkdir()
    (here / "projects/-workspace/a").write_text("a")
    fd = os.open(here / "projects/-workspace", os.O_RDONLY)
    for _ in range(1100):  # deeper than Python's stack, and than most limits of descriptors
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)

    assert await unpack(Source(pack(here, KEPT), 10**7), there, {"projects/-srv-x": "projects/-srv-x"}) == 1
    await anyio.run_process(["rm", "-r", str(here)])  # pytest can not


async def test_a_size_is_no_negative_number(tmp_path: Path) -> None:
    head = bytearray(tar.member(b"projects/-srv-x/a"))
    head[124:136] = b"-0000000001\0"
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + 8 * 32 + sum(head[156:]))

    with pytest.raises(WorkspaceError, match="not understood"):
        await unpack(Source(Stream(bytes(head), END, b"x" * 2048), 10**6), tmp_path, KEPT)
