"""Faults inside the container: what an agent can do to itself, to us, and to its limits."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from container_runner import CommandRuntime, ErrorMessage
from container_runner.agents import CommandLineRuntime
from container_runner.box import script
from container_runner.stream.messages import Message
from tests.faults.scene import Scene, last
from tests.integration.engines import NAMES
from tests.integration.fixtures import skipped_if_unavailable
from tests.integration.images import PASSWD, Unavailable, add_file, add_folder, add_programs, import_image
from tests.integration.runs import on

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

STUBBORN = """\
trap '' TERM HUP INT
echo ready
setsid sh -c 'while :; do sleep 9; done' &
setsid sleep 1001 &
sleep 1002 &
while :; do sleep 1003; done
"""


def run_for(
    scene: Scene,
    seconds: float | None,
    prompt: str = "",
    *,
    runtime: CommandLineRuntime | None = None,
    backend: str = "",
    ephemeral: bool = True,
    meanwhile: Callable[[], object] | None = None,
    grace: int = 3,
    **fields: object,
) -> tuple[list[Message], float]:
    """The messages of a run with a total timeout, and when it ended or was made to."""
    since = 0.0

    async def main() -> list[Message]:
        nonlocal since
        options = scene.options(prompt, timeout=seconds, grace=grace)
        messages: list[Message] = []
        since = time.monotonic()
        async with contextlib.aclosing(scene.runner(runtime, ephemeral=ephemeral, **fields).execute(options)) as stream:
            async for message in stream:
                messages.append(message)
                if meanwhile is not None and len(messages) == 1:
                    await anyio.to_thread.run_sync(meanwhile)
        return messages

    messages = anyio.run(main, backend=backend or scene.loop)
    now = time.monotonic()
    return messages, min(now, since + seconds) if seconds else now


@on(*NAMES)
@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
def test_an_agent_that_ignores_term_with_children_elsewhere(scene: Scene, ephemeral: bool) -> None:
    # By then it is deaf to TERM, on a busy machine too.
    messages, since = run_for(scene, 8, runtime=CommandRuntime(["sh", "-c", STUBBORN]), ephemeral=ephemeral)
    keep = [] if ephemeral else scene.containers()
    kind = "ephemeral" if ephemeral else "persistent"
    scene.settle(
        f"total timeout, TERM ignored, children in other sessions ({kind})", last(messages), since=since, keep=keep
    )
    assert last(messages) == "total_timeout (kill)"
    assert len(keep) == (not ephemeral)


@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
@pytest.mark.parametrize(
    ("what", "script", "wanted"),
    [
        ("the agent is killed by 9", "kill -9 $$", "agent_killed"),
        ("the agent does `kill -9 -1`", "kill -9 -1; sleep 1000", "agent_killed container_gone"),
        ("the agent kills its parent, our script's child", "kill -9 $PPID; sleep 1000", "agent_killed container_gone"),
        ("the agent closes its output and leaves", "exec >&- 2>&-; sleep 0.5; exit 7", "agent_failed"),
    ],
)
def test_the_agent_kills(scene: Scene, what: str, script: str, wanted: str, ephemeral: bool) -> None:
    messages, since = run_for(scene, None, runtime=CommandRuntime(["sh", "-c", script]), ephemeral=ephemeral)
    keep = [] if ephemeral else scene.containers()
    scene.settle(what, last(messages), since=since, keep=keep)
    assert last(messages).split()[0] in wanted.split()
    # A kept container whose run did not end in order serves no other.
    assert len(keep) == (not ephemeral and "container_gone" not in wanted)


STOP_THE_WATCHDOG = """\
for p in /proc/[0-9]*; do
  p=${p#/proc/}
  [ $p != 1 ] && [ $p != $$ ] && [ $p != $PPID ] && kill -STOP $p
done 2>/dev/null
echo ready
trap '' TERM
while :; do sleep 1000; done
"""


@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
def test_the_agent_stops_our_watchdog(scene: Scene, ephemeral: bool) -> None:
    runtime = CommandRuntime(["sh", "-c", STOP_THE_WATCHDOG])
    messages, since = run_for(scene, 8, runtime=runtime, ephemeral=ephemeral, grace=0)
    keep = [] if ephemeral else scene.containers()
    kind = "ephemeral" if ephemeral else "persistent"
    scene.settle(f"SIGSTOP of our watchdog, then a timeout ({kind})", last(messages), since=since, keep=keep)
    # PID 1 can not be stopped; the script in a kept container can for a while, and then its container may have to go.
    assert last(messages) in ["total_timeout (kill)", *([] if ephemeral else ["total_timeout (container)"])]


FORK_BOMB = "trap '' TERM; bomb() { bomb | bomb & sleep 1000; }; bomb & exec tail -f /dev/null"


@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
def test_a_fork_bomb_at_the_limit_that_ignores_term(scene: Scene, ephemeral: bool) -> None:
    runtime = CommandRuntime(["sh", "-c", FORK_BOMB])
    messages, since = run_for(scene, 3, runtime=runtime, ephemeral=ephemeral, pids_limit=64)
    keep = scene.containers() if not ephemeral else []
    kind = "ephemeral" if ephemeral else "persistent"
    scene.settle(f"fork bomb at the pids limit, then a timeout ({kind})", last(messages), since=since, keep=keep)
    assert last(messages).startswith("total_timeout")


def test_out_of_memory(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runtime = CommandRuntime(["sh", "-c", "tail /dev/zero"])
    messages, since = run_for(scene, None, runtime=runtime, memory="32m")
    scene.settle("the agent eats its memory", last(messages), since=since)
    assert last(messages) == "out_of_memory"
    assert [*tmp_path.iterdir()] == [], "the engine has left something in the current folder"


def test_out_of_memory_in_a_child_of_an_agent_that_goes_on(scene: Scene) -> None:
    messages, since = run_for(scene, None, "sh tail /dev/zero\nstill here", memory="32m")
    scene.settle("a tool eats the memory, the agent goes on", last(messages), since=since)
    assert last(messages) == "result"


CUT_DOWN = script.TOOLS


def cut_down(scene: Scene, *tools: str) -> str:
    """An image with these programs of this machine and no others. (busybox's shell has all of its own within.)"""
    programs = {tool: path for tool in tools if (path := shutil.which(tool))}
    assert len(programs) == len(tools)
    image = f"container-runner-test/cut-{'-'.join(tools)}"

    def add(archive: tarfile.TarFile) -> None:
        for folder in ("bin", "dev", "etc", "proc", "sys"):
            add_folder(archive, folder)
        add_folder(archive, "tmp", mode=0o1777)
        add_file(archive, "etc/passwd", PASSWD.encode())
        add_programs(archive, programs)

    import_image(scene.engine.binary, image, add)
    scene.engine.images.imported.append(image)
    return image


@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
def test_an_image_without_kill_ps_and_setsid(scene: Scene, ephemeral: bool) -> None:
    image = cut_down(scene, "sh", *CUT_DOWN)
    runtime = CommandRuntime(["sh", "-c", "trap '' TERM; sleep 1001 & sleep 1002; sleep 1003"])
    messages, since = run_for(scene, 6, runtime=runtime, ephemeral=ephemeral, image=image)
    keep = [] if ephemeral else scene.containers()
    scene.settle("timeout in an image without kill, ps and setsid", last(messages), since=since, keep=keep)
    assert last(messages) == "total_timeout (kill)"


@pytest.mark.parametrize(
    ("what", "tools"),
    [
        ("an image without mkfifo", ("sh", *(tool for tool in script.TOOLS if tool != "mkfifo"))),
        ("an image without wc and head", ("sh", *(tool for tool in script.TOOLS if tool not in ("wc", "head")))),
        ("an image without sh", ("cat", "head")),
    ],
)
def test_an_image_that_lacks_a_tool(scene: Scene, what: str, tools: tuple[str, ...]) -> None:
    messages, since = run_for(scene, None, image=cut_down(scene, *tools), runtime=CommandRuntime(["cat"]))
    scene.settle(what, last(messages), since=since)
    assert last(messages) == "image_unsuitable"


ORPHANS = """\
i=0
while [ $i -lt 3000 ]; do (true &) ; i=$((i + 1)); done
exit 7
"""


@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
def test_orphans_by_the_thousand_are_no_harm(scene: Scene, ephemeral: bool) -> None:
    """More than the limit on processes bears, were they not collected."""
    runtime = CommandRuntime(["sh", "-c", ORPHANS])
    messages, since = run_for(scene, None, runtime=runtime, ephemeral=ephemeral, pids_limit=2000)
    keep = [] if ephemeral else scene.containers()
    kind = "ephemeral" if ephemeral else "persistent"
    scene.settle(f"3,000 orphans in a run that goes on ({kind})", last(messages), since=since, keep=keep)
    assert last(messages) == "agent_failed"
    assert [message.exit_code for message in messages if isinstance(message, ErrorMessage)] == [7]


SHELLS = ("bash", "busybox", "dash")


def with_sh(scene: Scene, shell: str) -> str:
    """An image whose `sh` is this one, with this machine's tools beside it."""
    program = shutil.which(shell)
    if program is None:
        with skipped_if_unavailable():
            raise Unavailable(f"{shell} is not installed")
    tools = {tool: str(shutil.which(tool)) for tool in (*CUT_DOWN, "cat", "kill", "printf")}

    def add(archive: tarfile.TarFile) -> None:
        for folder in ("bin", "dev", "etc", "proc", "sys"):
            add_folder(archive, folder)
        add_folder(archive, "tmp", mode=0o1777)
        add_file(archive, "etc/passwd", PASSWD.encode())
        add_programs(archive, {**tools, "sh": str(program)})

    image = f"container-runner-test/sh-{shell}"
    import_image(scene.engine.binary, image, add)
    scene.engine.images.imported.append(image)
    return image


@on("docker")
@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
@pytest.mark.parametrize("shell", SHELLS)
def test_every_sh_that_images_have_holds_the_lease(scene: Scene, shell: str, ephemeral: bool) -> None:
    """Some ticks go by, then the agent is stopped."""
    fields: dict[str, Any] = {"image": with_sh(scene, shell), "ephemeral": ephemeral}
    patient = CommandRuntime(["sh", "-c", "cat; sleep 6; exit 4"])
    messages, _ = run_for(scene, None, "a prompt\n", runtime=patient, **fields)
    assert [message.exit_code for message in messages if isinstance(message, ErrorMessage)] == [4], messages
    stubborn = CommandRuntime(["sh", "-c", "trap '' TERM; echo ready; sleep 1001 & sleep 1002; sleep 1003"])
    messages, since = run_for(scene, 5, runtime=stubborn, grace=1, **fields)
    keep = [] if ephemeral else scene.containers()
    kind = "ephemeral" if ephemeral else "persistent"
    scene.settle(f"TERM ignored where sh is {shell} ({kind})", last(messages), since=since, keep=keep)
    assert last(messages) == "total_timeout (kill)"


@on("docker", "podman")
@pytest.mark.parametrize("ephemeral", [True, False], ids=["ephemeral", "persistent"])
@pytest.mark.parametrize("shell", ["ksh93", "mksh", "zsh"])
def test_another_sh_is_refused_in_words(scene: Scene, shell: str, ephemeral: bool) -> None:
    image = with_sh(scene, shell)
    messages, since = run_for(scene, None, image=image, runtime=CommandRuntime(["cat"]), ephemeral=ephemeral)
    scene.settle(f"an image whose sh is {shell}", last(messages), since=since)
    assert last(messages) == "image_unsuitable"
    assert "ksh or zsh" in str(messages[-1])
