"""What an agent can try against the script that holds its lease, and then our death: the lease's end still ends it."""

from __future__ import annotations

import platform
import time

import pytest

from container_runner import CommandRuntime, ErrorMessage
from tests.faults.scene import Scene, last
from tests.faults.test_inside import run_for
from tests.integration.engines import NAMES
from tests.integration.fixtures import on, skipped_if_unavailable
from tests.integration.runs import lines_of

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(180),
    pytest.mark.parametrize("engine", on(*NAMES), indirect=True),
]

ATTACKS = {
    "hold": "opens what could be the lease, and stops all",
    "stop": "stops all",
    "kill": "kills all",
    "signals": "sends every signal",
    "chld": "storms with CHLD",
    "usr1": "storms with USR1",
    "orphans": "makes orphans without end",
    "bomb": "is a fork bomb",
    "rlimits": "takes PID 1's limits away",
    "forge": "speaks in our script's name",
}


def prompt(mode: str) -> str:
    return f"{mode} {platform.machine()}"


def image_of(scene: Scene) -> str:
    with skipped_if_unavailable():
        return scene.engine.images.attacker


@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
@pytest.mark.parametrize("mode", ATTACKS)
def test_it_does_not_outlive_us(scene: Scene, mode: str, ephemeral: bool) -> None:
    config = {"image": image_of(scene), "ephemeral": ephemeral, "pids_limit": 100}
    victim = scene.victim(prompt(mode), program="attacker", config=config)
    victim.wait_for("output")
    time.sleep(1)
    keep = [] if ephemeral else scene.containers()
    since = victim.kill(tree=True)
    kind = "ephemeral" if ephemeral else "persistent"
    scene.settle(f"the agent {ATTACKS[mode]}, then SIGKILL of us ({kind})", "nothing", since=since, keep=keep)
    for container in keep:
        scene.engine.remove(container)


@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
def test_nothing_of_our_script_can_be_opened_traced_or_read(scene: Scene, ephemeral: bool) -> None:
    runtime = CommandRuntime(["attacker"])
    messages, since = run_for(scene, None, prompt("probe"), runtime=runtime, ephemeral=ephemeral, image=image_of(scene))
    told = [line.decode() for line in lines_of(messages)]
    scene.settle("the agent looks for a way in", last(messages), since=since, keep=scene.containers())
    assert not isinstance(messages[-1], ErrorMessage)
    targets = [line.partition(": ")[0] for line in told]
    assert len(targets) == (1 if ephemeral else 2)
    assert "target 1" in targets
    assert [line for line in told if line.partition(": ")[2]] == []
