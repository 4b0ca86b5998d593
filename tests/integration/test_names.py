"""A user whom the image does not know, with real engines: the name in the box, and what else is seen of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from container_runner import Agent, ContainerManager, OutputLine
from container_runner.config import paths
from tests.integration.engines import RealEngine
from tests.integration.images import PASSWD
from tests.integration.runs import ON_DOCKER, ON_OWN_ROOTFUL, Box

pytestmark = ON_OWN_ROOTFUL

LOOK = "whoami; id -un; wc -l </etc/passwd; tail -1 /etc/passwd; echo x >>/etc/passwd"


@pytest.fixture
def box(engine: RealEngine, workspace: Path) -> Iterator[Box]:
    box = Box.make(engine, workspace)
    os.chown(box.workspace, 4242, 4242)
    yield box
    for container in box.containers():
        engine.remove(container)


def verbs(box: Box, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the engine is asked for from now on, verb by verb."""
    asked: list[str] = []

    async def spy(command: list[str], **more: Any) -> object:
        asked.append(command[1])
        return await anyio.open_process(command, **more)

    monkeypatch.setattr("container_runner.stream.process.open_process", spy)
    return asked


def test_a_user_whom_the_image_does_not_know_has_a_name(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = verbs(box, monkeypatch)
    first = box.sh(LOOK, user="4242:4242")
    began = len(asked)
    again = box.sh(LOOK, user="4242:4242", ephemeral=False)
    kept = box.sh(LOOK, user="4242:4242", ephemeral=False)

    for said in (first, again, kept):
        assert len(said.splitlines()) == 5, said
        name, same, count, line, refusal = said.splitlines()
        assert name == same
        assert int(count) == len(PASSWD.splitlines()) + 1
        assert line.startswith(f"{name}:")
        assert ":4242:4242:" in line
        assert "denied" in refusal.lower() or "read-only" in refusal.lower()
    # The kept one's, which is ours with podman too.
    assert kept.splitlines()[3] == f"agent-4242:x:4242:4242:agent:{paths.HOME}:/bin/sh"
    assert first.startswith("agent-4242\n" if box.engine.is_docker else "4242\n")
    # An image is looked at once, whatever its containers are then.
    assert (asked.count("create"), asked.count("cp")) == (1, 1)
    assert ("cp" in asked[began:]) != box.engine.is_docker
    assert len(box.containers()) == 1


@ON_DOCKER
def test_a_user_whom_the_image_knows_costs_no_call(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(box.workspace, *box.engine.owner)
    asked = verbs(box, monkeypatch)

    assert box.sh("whoami") == "agent"

    assert [verb for verb in asked if verb not in ("--version", "ps")] == ["run"]
    assert not (box.state / "passwd").exists()


@ON_DOCKER
def test_a_name_that_stands_for_another_image_by_now_brings_that_images_users(box: Box) -> None:
    """A link in the new one is not followed, and it runs as it is."""
    tag = f"{box.engine.images.tiny}-moved"
    cases = {"with another user": "COPY names /etc/passwd", "with a link": "RUN ln -sf /etc/group /etc/passwd"}
    try:
        box.engine.run("tag", box.engine.images.tiny, tag)
        assert box.sh("whoami", user="4242:4242", image=tag) == "agent-4242"
        for case, step in cases.items():
            folder = box.new_folder(case.replace(" ", "-"))
            (folder / "names").write_text("other:x:7:7::/:/bin/sh\n")
            (folder / "Containerfile").write_text(f"FROM {box.engine.images.tiny}\n{step}\n")
            box.engine.run("build", "--quiet", f"--tag={tag}", f"--file={folder}/Containerfile", str(folder))
            if case == "with a link":
                shutil.rmtree(box.state / "passwd")  # or it would be known what the name stood for

            said = box.sh("cat /etc/passwd; whoami", user="4242:4242", image=tag)

            assert ("other:x:7:7" in said) == (case == "with another user"), said
            assert ("agent:x:4242:4242" in said.replace(f"{paths.HOME}", "")) == (case == "with another user"), said
    finally:
        box.engine.run("rmi", "--force", tag)


@ON_DOCKER
def test_a_kept_container_without_a_runner_and_a_pool_have_it_too(box: Box) -> None:
    async def in_kept() -> str:
        manager = ContainerManager(box.state, engine=box.engine.binary)
        config = box.config(user="4242:4242")
        container = await manager.get_or_create(Agent(name="kept", workspace=box.workspace), config)
        messages = [message async for message in manager.exec(container, ["whoami"])]
        await manager.stop(container)
        assert isinstance(messages[0], OutputLine), messages
        return messages[0].text

    async def in_pool() -> str:
        runner = box.runner(user="4242:4242")
        given = box.options("sh whoami; sh echo seen")
        async with runner.warm(given.agent, size=1) as pool:
            with anyio.fail_after(60):
                while not len(pool):
                    await anyio.sleep(0.1)
            result = await runner.run(given, keep_messages=True)
        return str([message.to_dict() for message in result.messages])

    assert anyio.run(in_kept) == "agent-4242"
    assert "agent-4242" in anyio.run(in_pool)
    assert box.containers() == []
