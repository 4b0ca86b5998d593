"""What runs in real containers leave to read, and the commands that read it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import pytest

from container_runner import ClaudeRuntime, ErrorMessage
from container_runner.records.records import Records
from tests.integration.engines import OWN, wait_until
from tests.integration.runs import COMMAND, Box, error_of, on

pytestmark = on(*OWN)  # what is ours, whatever the engine's age


def command(box: Box, *words: str) -> str:
    """What a command prints that succeeds."""
    done = subprocess.run(
        [COMMAND, *words, "--agent=tester", f"--state-dir={box.state}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_can_be_read_afterwards(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "swordfish-4711")
    assert error_of(box.run("edit made.txt hello\nenv TOKEN\nsh echo $TOKEN; exit 3", secrets=("TOKEN",))) is None

    (run,) = json.loads(command(box, "logs", "--list", "--json"))
    transcript = command(box, "logs", "--json")
    shown = command(box, "sessions", "show", run["session_id"])
    page = command(box, "sessions", "show", run["session_id"], "--html=-")

    assert (run["outcome"], run["exit_code"], run["cost_usd"]) == ("succeeded", 0, 0.0125)
    assert run["workspace"] == str(box.workspace)
    for text in (transcript, shown, page):
        assert "made.txt" in text
        assert "[TOKEN]" in text
        assert "swordfish" not in text
    assert [json.loads(line)["message"]["type"] for line in transcript.splitlines()][:2] == ["start", "system"]


def test_a_failed_run_and_one_without_records(box: Box) -> None:
    assert isinstance(box.run("exit 7")[-1], ErrorMessage)
    done = subprocess.run(
        [
            COMMAND, "run", "hello", "--no-records", f"--workspace={box.workspace}", f"--state-dir={box.state}",
            f"--engine={box.engine.binary}", f"--image={box.engine.images.tiny}", "--network=none",
            "--credentials=none", "--agent=tester",
        ],
        capture_output=True, timeout=60,
    )  # fmt: skip

    assert done.returncode == 0
    (run,) = Records(box.state).runs()
    assert (run.summary.outcome, run.summary.kind, run.summary.exit_code) == ("failed", "agent_failed", 7)


def test_a_run_whose_process_is_killed_was_interrupted(box: Box) -> None:
    with box.cli("run", "hello\nsleep 60") as process:
        assert process.stdout is not None
        process.stdout.readline()
        (running,) = Records(box.state).runs()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (dead,) = Records(box.state).runs()

    assert (running.summary.outcome, dead.summary.outcome) == ("running", "interrupted")
    wait_until(lambda: not box.containers(), seconds=30)


@pytest.mark.claude
def test_a_session_of_the_real_claude(box: Box, claude_image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any-word-will-do")
    write = json.dumps({"file_path": "/workspace/a.py", "content": "x = 1\n"})
    edit = json.dumps({"file_path": "/workspace/a.py", "old_string": "x = 1", "new_string": "x = 2"})
    prompt = f"tool: Write {write}\ntool: Edit {edit}\nsay: It is **two** now."
    claude: dict[str, Any] = {"image": claude_image, "credentials": "env"}
    assert error_of(box.run(prompt, ClaudeRuntime("claude-offline"), **claude)) is None

    (session,) = json.loads(command(box, "sessions", "list", "--json", f"--workspace={box.workspace}"))
    recorded = command(box, "sessions", "show", session["session_id"])
    for path in (box.state / "runs" / "tester").iterdir():
        path.unlink()
    claudes_own = command(box, "sessions", "show", session["session_id"])

    assert session["can_resume"] is True
    for text in (recorded, claudes_own):
        assert "● Write /workspace/a.py" in text
        assert "  - x = 1\n  + x = 2" in text
        assert "It is **two** now." in text
        assert "any-word" not in recorded
