"""What all other tests with real engines stand on: the engines and the images are as they say."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.engines import LABEL, RealEngine, wait_until

TOOLS = ["sh", "cat", "head", "mkfifo", "rm", "sleep"]
HARDENED = ["--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only"]


def as_user(engine: RealEngine) -> list[str]:
    """The flags with which the agent's user is the owner of the workspace."""
    uid, gid = engine.owner
    return [f"--user={uid}:{gid}", *(["--userns=keep-id"] if engine.name == "podman-rootless" else [])]


def test_the_tiny_image_has_every_tool_that_a_run_needs(engine: RealEngine) -> None:
    look = f"for tool in {' '.join(TOOLS)}; do command -v $tool; done"
    found = engine.run("run", "--rm", "--network=none", engine.images.tiny, "sh", "-c", look)

    assert [Path(line).name for line in found.stdout.split()] == TOOLS


def test_the_scripted_agent_edits_a_file_that_belongs_to_the_workspaces_owner(
    engine: RealEngine, workspace: Path
) -> None:
    run = ["run", "--rm", "-i", *HARDENED, *as_user(engine), f"--volume={workspace}:/workspace", "--workdir=/workspace"]
    done = subprocess.run(
        [engine.binary, *run, engine.images.tiny, "claude", "-p", "--output-format", "stream-json"],
        check=True,
        capture_output=True,
        text=True,
        input='edit greeting.txt Hello, "world"',
        timeout=60,
    )

    assert (workspace / "greeting.txt").read_text() == 'Hello, "world"\n'
    assert (workspace / "greeting.txt").stat().st_uid == engine.owner[0]
    assert done.stdout.count('"tool_use"') == 1
    assert '"type":"result"' in done.stdout.splitlines()[-1]


def test_a_variable_reaches_the_container_by_its_name(engine: RealEngine) -> None:
    done = subprocess.run(
        [engine.binary, "run", "--rm", "--network=none", "--env=WORD", engine.images.tiny, "sh", "-c", 'echo "$WORD"'],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "WORD": "a b"},
        timeout=60,
    )

    assert done.stdout == "a b\n"


def test_the_scripts_pid_is_the_clients(engine: RealEngine) -> None:
    client = subprocess.Popen(
        [engine.binary, "run", "--rm", "-i", "--network=none", engine.images.tiny, "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    with client.stdin, client.stdout:
        client.stdin.write(b"ready\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"ready\n"

        command = Path(f"/proc/{client.pid}/cmdline").read_bytes().split(b"\0")

    assert Path(os.fsdecode(command[0])).name in ("docker", "podman")
    assert client.wait(30) == 0


def test_containers_lists_those_of_runs_whether_they_are_running_or_not(engine: RealEngine) -> None:
    create = ["--label", f"{LABEL}=1", "--network=none", engine.images.tiny]
    created = engine.run("create", *create, "true").stdout.strip()
    running = engine.run("run", "--detach", *create, "sleep", "1000").stdout.strip()
    other = engine.run("create", engine.images.tiny, "true").stdout.strip()
    try:
        assert {*engine.containers()} == {created, running}
    finally:
        for container in (created, running, other):
            engine.remove(container)


def test_the_bridge_network_gives_an_address(engine: RealEngine) -> None:
    shown = engine.run("run", "--rm", "--network=bridge", engine.images.tiny, "ip", "-4", "-o", "address")

    assert "eth0" in shown.stdout


@pytest.mark.claude
def test_the_real_claude_runs_without_network_and_capabilities(engine: RealEngine, claude_image: str) -> None:
    shown = engine.run("run", "--rm", *HARDENED, *as_user(engine), "--tmpfs=/tmp", claude_image, "claude", "--version")

    assert "(Claude Code)" in shown.stdout


@pytest.mark.claude
def test_the_real_claude_talks_to_the_stand_in_for_the_api(
    engine: RealEngine, claude_image: str, workspace: Path
) -> None:
    run = ["run", "--rm", "-i", *HARDENED, *as_user(engine), "--tmpfs=/tmp:mode=1777", "--env=HOME=/tmp"]
    run += [f"--volume={workspace}:/workspace", "--workdir=/workspace"]
    flags = ["-p", "--output-format=stream-json", "--verbose", "--dangerously-skip-permissions"]
    done = subprocess.run(
        [engine.binary, *run, claude_image, "claude-offline", *flags],
        check=False,
        capture_output=True,
        text=True,
        input="bash: echo hello >made.txt",
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert (workspace / "made.txt").read_text() == "hello\n"


@pytest.mark.faults
def test_a_private_daemon_can_be_killed_and_started_again(private_docker: Callable[[], RealEngine]) -> None:
    engine = private_docker()
    kept = engine.run("create", "--name=kept", engine.images.tiny, "true").stdout.strip()
    before = engine.daemon_pid

    os.kill(before, signal.SIGKILL)
    wait_until(lambda: engine.run("version", check=False).returncode != 0, seconds=10)
    engine.restart_daemon()

    assert engine.daemon_pid != before
    assert engine.run("ps", "--all", "--quiet", "--no-trunc").stdout.split() == [kept]
