"""Random faults at random moments: `python -m tests.faults.soak [MINUTES] [--seed N] [--engine NAME]...`

Four lanes run agents, one run after another, on Docker and Podman in turn, and commit a fault on each. At the end it
prints what happened how often, and what is left, which must be nothing; otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import attrs

from container_runner.stream.messages import ErrorMessage, Message
from tests.faults.scene import PATIENCE, Scene, Table, last, resources
from tests.integration.engines import NAMES
from tests.integration.fixtures import new_engines
from tests.integration.images import Unavailable

LANES = 4
PROMPTS = (
    "hello",
    "setsid-hold 1001\nignore-term",
    "sh setsid sleep 1002 & sleep 1003",
    "flood 100000000 100",
    "sh sleep 0.5; echo done",
    "fail on purpose",
    "kill KILL",
    "hang-after-result",
    "stderr 3000000",
)


UNCLEAR = ("engine", "engine_busy", "engine_timeout", "cleanup")
"""Kinds of errors whose own words are worth reading."""


@attrs.define
class Soak:
    scenes: list[Scene]
    random: random.Random
    ends_at: float
    counts: collections.Counter[str] = attrs.field(factory=collections.Counter)
    problems: list[str] = attrs.field(factory=list)

    async def lane(self, number: int) -> None:
        faults: list[Callable[[Scene], Awaitable[None]]] = [
            self.cancelled,
            self.broken_off,
            self.timed_out,
            self.killed_with_9,
            self.container_struck,
            self.client_struck,
            self.unharmed,
        ]
        while time.monotonic() < self.ends_at:
            scene, fault = self.random.choice(self.scenes), self.random.choice(faults)
            self.counts[f"fault: {fault.__name__}"] += 1
            try:
                with anyio.fail_after(150):
                    await fault(scene)
            except TimeoutError:
                self.problems.append(f"{fault.__name__} on {scene.engine.name} hung for 150 s")
            except Exception as error:
                self.problems.append(f"{fault.__name__} on {scene.engine.name}: {error!r}")

    async def run(
        self,
        scene: Scene,
        meanwhile: Callable[[], object] | None = None,
        *,
        ephemeral: bool | None = None,
        **options: Any,
    ) -> list[Message]:
        """One run of an agent that does something or other, now and then in a persistent container."""
        messages: list[Message] = []
        runner = scene.runner(ephemeral=self.random.random() < 0.8 if ephemeral is None else ephemeral)
        request = scene.options(
            self.random.choice(PROMPTS), grace=1, **{"result_timeout": 1.0, "timeout": 20.0, **options}
        )
        async with contextlib.aclosing(runner.execute(request)) as stream:
            async for message in stream:
                messages.append(message) if len(messages) < 100 else messages.__setitem__(-1, message)
                if meanwhile is not None and len(messages) == 1:
                    await anyio.sleep(self.random.random())
                    await anyio.to_thread.run_sync(meanwhile)
        self.counts[f"{scene.engine.name} saw: {last(messages)}"] += 1
        end = messages[-1] if messages else None
        if isinstance(end, ErrorMessage) and end.kind in UNCLEAR:
            self.counts[f"{scene.engine.name} said: {end.message} {end.stderr[-500:]!r}"] += 1
        return messages

    async def unharmed(self, scene: Scene) -> None:
        await self.run(scene)

    async def timed_out(self, scene: Scene) -> None:
        await self.run(scene, timeout=0.1 + 2 * self.random.random())

    async def cancelled(self, scene: Scene) -> None:
        with anyio.move_on_after(3 * self.random.random() ** 2):
            await self.run(scene)

    async def broken_off(self, scene: Scene) -> None:
        stream = scene.runner().execute(scene.options(self.random.choice(PROMPTS), grace=1, timeout=20.0))
        async with contextlib.aclosing(stream):
            async for _ in stream:
                if self.random.random() < 0.5:
                    break

    async def killed_with_9(self, scene: Scene) -> None:
        victim = await anyio.to_thread.run_sync(
            lambda: scene.victim(self.random.choice(PROMPTS), config={"ephemeral": self.random.random() < 0.8})
        )
        await anyio.sleep(0.5 + 3 * self.random.random())
        tree = self.random.random() < 0.5
        self.counts[f"fault: SIGKILL, {'tree' if tree else 'alone'}"] += 1
        await anyio.to_thread.run_sync(lambda: victim.kill(tree=tree))

    async def container_struck(self, scene: Scene) -> None:
        verb = self.random.choice((["kill"], ["rm", "--force"], ["stop", "--time=1"], ["pause"]))

        def strike() -> None:
            if containers := scene.containers():
                try:
                    scene.engine.run(*verb, self.random.choice(containers), check=False)
                except subprocess.TimeoutExpired:  # dockerd 20.10, now and then, of a container that it has paused
                    self.counts[f"{scene.engine.name} did not answer our own {' '.join(verb)} in a minute"] += 1

        await self.run(scene, strike)

    async def client_struck(self, scene: Scene) -> None:
        def strike() -> None:
            for pid in scene.clients("exec")[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, self.random.choice((signal.SIGTERM, signal.SIGKILL)))

        await self.run(scene, strike)

    async def main(self) -> None:
        before = resources()
        async with anyio.create_task_group() as group:
            for number in range(LANES):
                group.start_soon(self.lane, number)
        for scene in self.scenes:
            # Killed starts leave containers that never ran, and the next start removes them, and a persistent container
            # that was paused when its run's host was killed. The new one outlives its run; of its agents nothing may.
            await self.run(scene, ephemeral=False)
            await anyio.sleep(PATIENCE)
            left = [f"process of a run {line[:150]}" for line in scene.agents().values()]
            await (await scene.runner().manager()).prune()
            await anyio.sleep(1)
            kept = [id_ for id_ in scene.containers() if is_persistent(scene, id_)]
            self.counts[f"{scene.engine.name}: persistent containers at the end"] = len(kept)
            for container in kept:
                await anyio.to_thread.run_sync(scene.engine.remove, container)
            await (await scene.runner().manager()).prune()  # their locks
            self.problems += left
        await anyio.sleep(1)
        grown = {name: (before[name], now) for name, now in resources().items() if now > before[name] + 2}
        if grown:
            self.problems.append(f"grown: {grown}")


def is_persistent(scene: Scene, container: str) -> bool:
    told = scene.engine.run("inspect", '--format={{index .Config.Labels "container-runner.kind"}}', container)
    return told.stdout.strip() == "persistent"


def main() -> int:
    parser = argparse.ArgumentParser(description="Random faults at random moments.")
    parser.add_argument("minutes", nargs="?", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--engine", action="append", choices=NAMES)
    asked = parser.parse_args()
    print(f"{asked.minutes:g} minutes, seed {asked.seed}", flush=True)
    engines = new_engines()
    left_by_engines: list[str] = []
    try:
        with contextlib.ExitStack() as stack:
            scenes = []
            for name in asked.engine or ["docker", "podman"]:
                try:
                    scenes.append(stack.enter_context(Scene.on(engines.get(name), Table())))
                except Unavailable as reason:
                    print(f"no {name}: {reason}")
            if not scenes:
                return 1
            soak = Soak(scenes, random.Random(asked.seed), time.monotonic() + 60 * asked.minutes)
            anyio.run(soak.main)
            for scene in soak.scenes:  # after the event loop, which has descriptors of its own
                soak.problems += [f"left on {scene.engine.name}: {thing}" for thing in scene.left()]
    finally:
        left_by_engines = engines.stop()
    for what, count in sorted(soak.counts.items()):
        print(f"{count:6} {what}")
    problems = soak.problems + left_by_engines
    print(f"{len(problems)} left or wrong", *problems, sep="\n  ")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
