"""An ACP agent with a tool at work in a session of its own: when we are killed, nothing of it stays."""

from __future__ import annotations

import pytest

from tests.faults.scene import Scene
from tests.integration.engines import wait_until

pytestmark = pytest.mark.faults


def is_at_work(scene: Scene) -> bool:
    return any("sleep" in line and "300" in line for line in scene.agents().values())


@pytest.mark.parametrize("tree", [False, True], ids=["us alone", "our whole tree"])
def test_it_ends_with_us(scene: Scene, tree: bool) -> None:
    victim = scene.victim("slow", acp="acp-agent")
    victim.wait_for("assistant")
    wait_until(lambda: is_at_work(scene), seconds=60)
    assert is_at_work(scene)

    since = victim.kill(tree=tree)

    scene.settle(
        f"an ACP agent with a tool at work, SIGKILL of {'our whole tree' if tree else 'us alone'}",
        "nothing",
        since=since,
    )
