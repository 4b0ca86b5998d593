"""`container-runner attach`: an agent's own screen in a box, at a terminal."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from container_runner import ClaudeRuntime
from tests.integration.engines import wait_until
from tests.integration.runs import COMMAND, ON_OWN_ROOTFUL, Box, collect, error_of, result_of, said
from tests.terminal import Terminal

pytestmark = ON_OWN_ROOTFUL

WAIT = 90
"""Seconds after which a screen hangs."""

KEY = "sk-any-word-will-do-123456"

STAND_IN = (
    "python3 /opt/messages_api.py --port 8632 --port-file /tmp/port --requests /tmp/requests.jsonl"
    " </dev/null >/dev/null 2>&1 & until [ -s /tmp/port ]; do sleep 0.1; done"
)


def attached(box: Box, *flags: str, image: str = "") -> Terminal:
    """The command at a terminal, with a key of claude's."""
    words = [COMMAND, "attach", "--agent=bot", f"--workspace={box.workspace}", f"--state-dir={box.state}"]
    words += [f"--engine={box.engine.binary}", f"--image={image or box.engine.images.tiny}", "--network=none", *flags]
    return Terminal(words, cwd=Path("/"), env={"ANTHROPIC_API_KEY": KEY}, columns=100, rows=30)


def ends(box: Box) -> None:
    """Wait until no container is left."""
    wait_until(lambda: box.containers() == [], seconds=WAIT)


def test_a_person_has_the_box_at_a_terminal(box: Box) -> None:
    with attached(box, "--carried", "--apply=always", "--command=sh", "--secret=ANTHROPIC_API_KEY") as terminal:
        terminal.wait_for("$", WAIT)
        (container,) = box.containers()
        terminal.type("(echo up; exec cat)\n")
        terminal.wait_for("\nup", WAIT)
        terminal.type("\x03")
        terminal.wait_for("^C", WAIT)
        terminal.type("echo $?, $(id -u), $(stty size), ${#ANTHROPIC_API_KEY}\n")
        terminal.wait_for(f"130, {box.engine.owner[0]}, 30 100, {len(KEY)}", WAIT)
        assert KEY not in box.engine.run("inspect", container).stdout
        terminal.resize(80, 20)
        terminal.type("clear; stty size; pwd; echo hi >made.txt\n")
        terminal.wait_for("20 80\n/workspace", WAIT)
        assert not (box.workspace / "made.txt").exists()
        terminal.type("exit 3\n")
        assert terminal.finish(WAIT) == 3
        assert "It is applied." in terminal.text
    assert (box.workspace / "made.txt").read_text() == "hi\n"
    assert box.containers() == []


@pytest.mark.parametrize("kept", [False, True], ids=["ephemeral", "kept"])
def test_whatever_ends_us_ends_what_is_behind_the_screen(box: Box, kept: bool) -> None:
    """Its jobs have sessions of their own."""
    script = "setsid tail -f /dev/null & trap '' HUP; echo ready; exec tail -f /dev/null"
    flags = [f"--command={shlex.join(['sh', '-c', script])}", "--rw", *(["--no-ephemeral"] if kept else [])]

    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
        with attached(box, *flags) as terminal:
            terminal.wait_for("ready", WAIT)
            if number == signal.SIGHUP:
                terminal.hang_up()
            else:
                os.kill(terminal.process.pid, number)
            assert terminal.process.wait(WAIT) == (-number if number == signal.SIGKILL else 128 + number)
        if kept:
            wait_until(lambda: not tails(box), seconds=WAIT)
            assert len(box.containers()) == 1
        else:
            ends(box)
    for container in box.containers():
        box.engine.remove(container)


def tails(box: Box) -> Sequence[str]:
    """The agents' processes in the kept container."""
    (container,) = box.containers()
    lines = box.engine.run("exec", container, "ps").stdout.splitlines()
    assert any("ps" in line for line in lines)
    return [line for line in lines if "tail -f" in line]


def test_a_program_that_the_image_lacks(box: Box) -> None:
    with attached(box, "--agent-kind=codex") as terminal:
        assert terminal.finish(WAIT) != 0
        assert "The agent's program is not in the image." in terminal.text
        assert "container-runner image build codex" in terminal.text
    assert box.containers() == []


@pytest.mark.claude
def test_the_real_claude_on_its_screen_shares_its_sessions_with_runs(box: Box, claude_image: str) -> None:
    with attached(
        box, "--rw", "--memory=4g", "--base-url=http://127.0.0.1:8632", f"--setup={STAND_IN}", image=claude_image
    ) as terminal:
        terminal.wait_for("bypass permissions on", WAIT)  # and nothing was asked before
        terminal.type("bash: echo hi >made.txt")
        terminal.type("\r")
        terminal.wait_for("● done:", WAIT)
        terminal.type("/exit")  # a second Ctrl-C would have to come soon, which a busy machine may not manage
        terminal.wait_for(" /exit", WAIT)
        terminal.type("\r")
        assert terminal.finish(WAIT) == 0
        assert "claude --dangerously-skip-permissions --resume" in terminal.text
    assert (box.workspace / "made.txt").read_text() == "hi\n"
    assert box.containers() == []

    (session,) = (box.state / "sessions/bot/projects/-workspace").glob("*.jsonl")
    runner = box.runner(ClaudeRuntime("claude-offline"), image=claude_image, memory="4g")
    messages = collect(runner, box.options("say: and by a run", agent="bot", resume=session.stem))
    assert error_of(messages) is None
    assert said(messages) == ["and by a run"]
    assert result_of(messages).session_id == session.stem
