"""A path is swapped for a link to elsewhere between our look at it and the engine's: the box does not open."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import anyio
import attrs
import pytest

from container_runner import Agent, ErrorMessage, Message, Mount
from tests.integration.engines import write_program
from tests.integration.runs import ON_OWN_ROOTFUL, Box, error_of, messages_of, result_of, tool_output

READ = "sh cat /workspace/* /workspace/*/* /data/* 2>/dev/null; echo mine >/workspace/scripts/made"


@attrs.frozen
class Trap:
    """A box whose engine swaps two paths just before it starts a container."""

    box: Box
    victim: Path

    @classmethod
    def make(cls, box: Box) -> Trap:
        for place in (box.workspace, box.new_folder("victim")):
            for folder in (place / ".husky", place / "scripts"):
                folder.mkdir()
                os.chown(folder, *box.engine.owner)
            (place / "scripts/hook").touch()
            (place / ".husky/pre-commit").symlink_to("../scripts/hook")  # so that `scripts` is bound over itself
        victim = box.folder / "victim"
        for folder in (victim, victim / "scripts"):
            (folder / "hook").touch()  # so that the engine finds what it is to mount, whatever leads here
        (victim / "key").write_text("the victim's key")
        return cls(box, victim)

    def armed(self, path: Path) -> Box:
        """The box with an engine for which *path* becomes a link to the victim's folder."""
        program = self.box.folder / f"trap-{path.name}"
        aside = shlex.join(["mv", str(path), f"{path}.aside"])
        link = shlex.join(["ln", "-s", str(self.victim), str(path)])
        write_program(program, f'[ "$1" != run ] || [ -L {shlex.quote(str(path))} ] || {{ {aside} && {link}; }}\n'
                               f"exec {self.box.engine.binary}")  # fmt: skip
        return attrs.evolve(self.box, engine=attrs.evolve(self.box.engine, binary=str(program)))

    def holds(self, messages: list[Message]) -> None:
        error = error_of(messages)
        assert error is not None, messages
        assert error.kind == "mount"
        assert "is not what was planned" in error.message
        assert "the victim's key" not in str(messages)
        assert not [*self.victim.rglob("made")]


@pytest.fixture
def trap(box: Box) -> Trap:
    return Trap.make(box)


PATHS: dict[str, Callable[[Box], Path]] = {
    "a folder that leads to a hook": lambda box: box.workspace / "scripts",
    "a protected folder": lambda box: box.workspace / ".husky",
    "the workspace": lambda box: box.workspace,
}


@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
@pytest.mark.parametrize("what", PATHS)
def test_what_was_swapped_is_not_worked_in(trap: Trap, what: str, ephemeral: bool) -> None:
    messages = trap.armed(PATHS[what](trap.box)).run(READ, ephemeral=ephemeral)

    trap.holds(messages)
    assert trap.box.containers() == []


def test_a_volume_that_was_swapped_is_not_worked_in(trap: Trap) -> None:
    data = trap.box.new_folder("data")

    trap.holds(trap.armed(data).run(READ, volumes=[Mount(str(data), "/data")]))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_container_that_waits_is_looked_at_when_its_run_comes(trap: Trap) -> None:
    box = trap.armed(trap.box.workspace / "scripts")
    runner = box.runner(pool=1)
    async with runner.warm(Agent(name="tester", workspace=box.workspace)) as pool:
        with anyio.fail_after(30):
            while not len(pool):
                await anyio.sleep(0.05)
        # As an attacker would: the path is itself again, so that the plan of the run is the container's own.
        scripts = box.workspace / "scripts"
        scripts.unlink()
        scripts.with_name("scripts.aside").rename(scripts)
        async with messages_of(runner, box.options(READ)) as stream:
            messages = [message async for message in stream]
    trap.holds(messages)


@ON_OWN_ROOTFUL
def test_mounts_of_the_machine_below_a_workspace_come_along(box: Box) -> None:
    """They were there when we looked, so they are what was planned. Other engines have mount tables of their own."""
    inner = box.workspace / "inner"
    inner.mkdir()
    other = box.new_folder("other")
    (other / "note").write_text("from the other")
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    os.system(shlex.join(["mount", "--bind", str(other), str(inner)]))
    try:
        messages = box.run("sh cat inner/note; echo more >inner/made")
    finally:
        os.system(shlex.join(["umount", str(inner)]))

    result_of(messages)
    assert "from the other" in tool_output(messages)
    assert (other / "made").exists()


@pytest.mark.parametrize("flag", ["--tmpfs=/workspace/extra", "--volume={folder}:/workspace/extra"])
def test_what_the_operator_mounts_with_extra_args_is_not_refused(box: Box, flag: str) -> None:
    folder = box.new_folder("extra")

    messages = box.run("sh ls -d extra", extra_args=[flag.format(folder=folder)])

    assert not any(isinstance(message, ErrorMessage) for message in messages), messages
    assert tool_output(messages) == "extra"
