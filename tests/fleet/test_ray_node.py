"""What a node of a Ray cluster does, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from container_runner.fleet import ray_node
from container_runner.fleet.ray_node import NodeRunner
from container_runner.fleet.travel import make_parcel, pack, wanted_for
from container_runner.workspace.shadow import Shadow


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeRunner:
    monkeypatch.setattr(NodeRunner, "_end_with", lambda *_: None)
    monkeypatch.setattr(ray_node, "CACHE", tmp_path / "cache")
    return NodeRunner([], 30)


async def test_a_pack_that_broke_off_is_no_part_of_the_next(node: NodeRunner, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "file").write_text("text\n")
    shadow = await Shadow.open(work, tmp_path / "home")
    parcel = await make_parcel(shadow, await shadow.hold())
    whole = b"".join([part async for part in pack(shadow, wanted_for(parcel))])
    assert not await node.has(parcel)
    await node.receive(parcel, whole[: len(whole) // 2])

    assert not await node.has(parcel)
    for part in (whole, b""):
        await node.receive(parcel, part)

    assert await node.has(parcel)
    assert (tmp_path / "cache" / parcel.key / "file").read_text() == "text\n"
