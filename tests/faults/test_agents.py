"""The real agents that are not claude, each with a tool at work: however we stop, no process of it stays.

Their tools live in sessions of their own. An ephemeral container's PID namespace ends them, and in a kept one the
sweep does.
"""

from __future__ import annotations

import time
from typing import Any, TypeAlias

import anyio
import pytest

from container_runner import KINDS, Agent, ExecuteOptions
from tests.faults.scene import Scene
from tests.integration.test_agents import AGENTS

pytestmark = [pytest.mark.faults, pytest.mark.claude, pytest.mark.timeout(600)]

Fields: TypeAlias = dict[str, Any]

AT_WORK = "bash: tail -f /dev/null"


KIND = pytest.mark.parametrize("kind", AGENTS)


def asked(kind: str, image: str, monkeypatch: pytest.MonkeyPatch, *, ephemeral: bool) -> tuple[Fields, Fields]:
    """The configuration of an agent's runs, and the fields of the agent."""
    given = AGENTS[kind]
    monkeypatch.setenv(given.key, "any-word-will-do")
    fields = {"image": image, "ephemeral": ephemeral, "credentials": "env", "memory": "4g"}
    return fields, {"model": given.model, "base_url": given.base_url}


LIVE = "gemini"
"""One that is killed in a live session, too."""


@KIND
def test_we_are_killed(scene: Scene, agents_image: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ephemeral = scene.engine.name == "podman"  # each on one engine
    fields, agent = asked(kind, agents_image, monkeypatch, ephemeral=ephemeral)
    program = f"{kind}-offline"
    box = "ephemeral" if ephemeral else "persistent"
    runs = {kind: {"kind": kind, "program": program}}
    if kind == LIVE:
        runs[f"{kind} by ACP"] = {"kind": kind, "acp": program}
    for name, runtime in runs.items():
        victim = scene.victim(AT_WORK, **runtime, config=fields, fields=agent)
        anyio.run(tool_at_work, scene)
        keep: list[str] = [] if ephemeral else scene.containers()

        since = victim.kill(tree=False)

        scene.settle(f"real {name} with a tool at work, SIGKILL of us alone ({box})", "nothing", since=since, keep=keep)
        assert len(keep) == (not ephemeral)


@KIND
@pytest.mark.on("docker")
def test_it_is_cancelled(scene: Scene, agents_image: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an ephemeral container; `tests/integration/test_agents.py` does so in a kept one."""
    fields, agent = asked(kind, agents_image, monkeypatch, ephemeral=True)

    since = anyio.run(cancelled, scene, kind, fields, agent, backend=scene.loop)

    scene.settle(f"real {kind} with a tool at work, cancel (ephemeral)", "cancelled", since=since)


async def cancelled(scene: Scene, kind: str, fields: Fields, agent: Fields) -> float:
    """Cancel a run whose tool is at work, and tell when."""
    runner = scene.runner(KINDS[kind](f"{kind}-offline"), **fields)
    options = ExecuteOptions(prompt=AT_WORK, agent=Agent(name=scene.token, workspace=scene.workspace, **agent))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.run, options)
        await tool_at_work(scene)
        since = time.monotonic()
        tasks.cancel_scope.cancel()
    return since


async def tool_at_work(scene: Scene) -> None:
    """Wait until the tool's process is there; not every agent tells of a call before its end."""
    with anyio.fail_after(90):
        while not any("tail" in line for line in scene.agents().values()):
            await anyio.sleep(0.1)
