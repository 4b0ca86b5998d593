"""What an agent can try against the script that holds its lease, and then our death: the lease's end still ends it."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import pytest

from container_runner import CommandRuntime, ErrorMessage
from tests.faults.scene import Scene, last
from tests.faults.test_inside import run_for
from tests.integration.engines import OWN, TODAY
from tests.integration.fixtures import skipped_if_unavailable
from tests.integration.runs import lines_of, on

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(180),
    on(*OWN),
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


UNBOUND = ("bomb", "orphans")
"""What only a limit on processes keeps in the box."""


def limits_count(scene: Scene) -> bool:
    return scene.engine.name != "podman-rootless" or Path("/sys/fs/cgroup/cgroup.controllers").exists()


def prompt(mode: str) -> str:
    return f"{mode} {platform.machine()}"


def image_of(scene: Scene) -> str:
    with skipped_if_unavailable():
        return scene.engine.images.attacker


@on("docker", "podman")
@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
@pytest.mark.parametrize("mode", ATTACKS)
def test_it_does_not_outlive_us(scene: Scene, mode: str, ephemeral: bool) -> None:
    attack(scene, mode, ephemeral=ephemeral)


@on("podman-rootless", *TODAY)
@pytest.mark.parametrize("mode", ATTACKS)
def test_it_does_not_outlive_us_elsewhere(scene: Scene, mode: str) -> None:
    attack(scene, mode, ephemeral=True)


def attack(scene: Scene, mode: str, *, ephemeral: bool) -> None:
    """Let the agent do it, kill us, and count what is left."""
    if mode in UNBOUND and not limits_count(scene):
        pytest.skip("rootless podman limits nothing on cgroup v1, so this would be an attack on this machine")
    config = {"image": image_of(scene), "ephemeral": ephemeral, "pids_limit": 100}
    victim = scene.victim(prompt(mode), program="attacker", config=config)
    while (line := victim.line()) and not line.startswith(("output", "agent_killed")):
        pass  # what kills all may end its own run before it is heard
    time.sleep(1)
    keep = [] if ephemeral else scene.containers()
    since = victim.kill(tree=True)
    kind = "ephemeral" if ephemeral else "persistent"
    what = f"the agent {ATTACKS[mode]}, then SIGKILL of us ({kind})"
    # What stops our script in a kept container is ended by its silence.
    scene.settle(what, "nothing", since=since, keep=keep, patience=15 if ephemeral else 25)
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
