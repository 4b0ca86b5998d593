"""The command `container-runner` as a shell, a script and a person at a terminal use it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.integration.engines import OWN, wait_until
from tests.integration.runs import COMMAND, ON_DOCKER, ON_OWN_ROOTFUL, Box, on

pytestmark = on(*OWN)  # what is ours, whatever the engine's age

WAIT = 60
"""Seconds after which a command hangs."""


def finish(running: contextlib.AbstractContextManager[subprocess.Popen[str]]) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr."""
    with running as process:
        stdout, stderr = process.communicate(timeout=WAIT)
        return process.returncode, stdout, stderr


def started(process: subprocess.Popen[str]) -> None:
    """Wait until the agent has said something."""
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() or process.stderr.read() == ""


def test_text_is_for_people(box: Box) -> None:
    code, stdout, stderr = finish(box.cli("run", "edit made.txt hello"))

    assert code == 0, stderr
    assert "I edited made.txt." in stdout
    assert "Edit" in stdout
    assert "succeeded" in stderr
    assert "--resume=" in stderr
    assert (box.workspace / "made.txt").read_text() == "hello\n"
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("apply", ["clean", "never"])
def test_a_chat_with_any_acp_agent_works_on_a_copy_whose_changes_are_told(box: Box, apply: str) -> None:
    given = ("--acp=acp-agent", "--carried", f"--apply={apply}")

    code, stdout, stderr = finish(box.cli("chat", "sh echo hi >made.txt; pwd", *given))

    assert code == 0, stderr
    assert "done: /workspace" in stdout
    assert "made.txt" in stderr
    assert (box.workspace / "made.txt").exists() == (apply == "clean")
    assert ("It is applied." in stderr) == (apply == "clean")
    assert ("container-runner apply" in stderr) == (apply == "never")
    assert box.containers() == []


@ON_DOCKER
def test_json_is_for_programs(box: Box) -> None:
    code, stdout, stderr = finish(box.cli("run", "hello", "--json"))

    messages = [json.loads(line) for line in stdout.splitlines()]
    assert (code, stderr) == (0, "")
    assert [message["type"] for message in messages] == ["system", "assistant", "result", "changes"]


@ON_DOCKER
def test_a_prompt_comes_from_stdin_if_it_is_a_dash(box: Box) -> None:
    with box.cli("run", "-", stdin=subprocess.PIPE) as process:
        stdout, stderr = process.communicate("-- hello\n", timeout=WAIT)

    assert process.returncode == 0, stderr
    assert "-- hello" in stdout


@ON_DOCKER
@pytest.mark.parametrize(
    ("prompt", "flags", "code", "told"),
    [
        ("exit 7", [], 1, "code 7"),
        ("fail It did not work.", [], 1, "It did not work."),
        ("no-result", [], 7, "without a result"),
        ("kill KILL", [], 8, "SIGKILL"),
        ("sleep 1000", ["--timeout=0.5"], 124, "0.5 seconds"),
        ("hello", ["--command=no-such-agent"], 127, "no-such-agent"),
        ("hello", ["--command=/etc"], 126, "/etc"),
        ("hello", ["--image=container-runner-test/none-such"], 4, "none-such"),
        ("hello", ["--engine=/no/such/engine"], 3, "/no/such/engine"),
        ("hello", ["--memory=lots"], 2, "lots"),
        ("hello", ["--no-such-flag"], 2, "no-such-flag"),
    ],
)
def test_exit_codes_tell_failures_apart(box: Box, prompt: str, flags: list[str], code: int, told: str) -> None:
    found, stdout, stderr = finish(box.cli("run", prompt, *flags))

    assert found == code, stdout + stderr
    assert told in stdout + stderr
    assert "Traceback" not in stderr
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_agent_and_leaves_nothing(box: Box, number: signal.Signals) -> None:
    with box.cli("run", "sleep 1000") as process:
        started(process)
        began = time.monotonic()
        os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=WAIT)

    assert process.returncode == 128 + number
    assert time.monotonic() - began < 10
    assert "Stopped" in stderr
    assert "Traceback" not in stderr
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("flags", [["--json"], []], ids=["json", "text"])
def test_a_signal_is_obeyed_also_while_nobody_reads_what_we_write(box: Box, flags: list[str]) -> None:
    prompt = "sh : >begun\nflood 30 100000\nsh : >ended"
    with box.cli("run", prompt, *flags) as process:
        wait_until((box.workspace / "begun").exists, seconds=20)
        time.sleep(1)  # the pipe is full by now
        process.send_signal(signal.SIGTERM)
        exit_code = process.wait(WAIT)

    assert exit_code == 143
    assert not (box.workspace / "ended").exists()
    assert box.containers() == []


@ON_OWN_ROOTFUL
def test_a_signal_before_the_agent_has_started_leaves_nothing(box: Box) -> None:
    with box.cli("run", "sleep 1000") as process:
        wait_until(lambda: bool(box.containers()), seconds=20)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=WAIT)

    assert process.returncode == 130, stderr
    assert box.containers() == []


@ON_OWN_ROOTFUL
def test_a_second_signal_does_not_wait_and_the_container_ends_by_itself(box: Box) -> None:
    with box.cli("run", "ignore-term", "--grace=8") as process:
        started(process)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=WAIT)

    assert process.returncode == 130
    assert time.monotonic() - began < 6  # and not after the grace period
    wait_until(lambda: not box.containers(), seconds=20)
    assert time.monotonic() - began < 25
    assert box.containers() == []


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_output_that_nobody_reads_any_more_ends_the_run(box: Box, flags: list[str]) -> None:
    with box.cli("run", "flood 1000000000 100", *flags) as process:
        started(process)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        stderr = process.stderr.read()
        process.wait(WAIT)

    assert process.returncode == 141
    assert stderr == ""
    assert box.containers() == []


@ON_DOCKER
def test_argv_prints_the_commands_and_runs_nothing(box: Box) -> None:
    _, text, stderr = finish(box.cli("argv", "hello $(id)"))
    code, listed, _ = finish(box.cli("argv", "hello $(id)", "--json"))

    ids = re.compile(r"[0-9a-f]{32}|(?<=-)[0-9a-f]{12}(?=\b)|container-runner\.(pid|started|deadline)=\d+")
    assert code == 0, stderr
    words = [ids.sub("ID", word) for line in json.loads(listed) for word in line]
    assert shlex.split(ids.sub("ID", text), comments=True) == words
    assert [line[1] for line in json.loads(listed)] == ["run", "exec"]
    assert not box.state.exists()
    assert box.containers() == []


@ON_DOCKER
def test_an_agent_can_not_control_the_terminal(box: Box) -> None:
    command = shlex.join(["printf", r"\033]0;title\007\033[2Jhello\n"])

    code, stdout, _ = finish(box.cli("run", "x", f"--command={command}"))

    assert code == 0
    assert "hello" in stdout
    assert "\033" not in stdout
    assert "\007" not in stdout


def test_the_module_is_the_command() -> None:
    shown = [
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for command in ([COMMAND, "--version"], [sys.executable, "-m", "container_runner", "--version"])
    ]

    assert shown[0] == shown[1]
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", shown[0])
