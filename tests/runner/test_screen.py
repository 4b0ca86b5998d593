"""An agent's own screen: how its two processes find each other, and what is asked of the engine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from container_runner import (
    KINDS,
    Agent,
    ClaudeRuntime,
    CommandRuntime,
    ContainerConfig,
    ContainerRunner,
    ExecuteOptions,
    PythonRuntime,
    UnsupportedRuntimeError,
)
from container_runner.runner.screen import HOLD, SHOW, ScreenRuntime
from tests.terminal import Terminal

SHELLS = [shell for shell in (["dash"], ["bash", "--posix"], ["busybox", "sh"]) if shutil.which(shell[0])]


def options(**fields: object) -> ExecuteOptions:
    return ExecuteOptions(prompt="", agent=Agent(name="bot", **fields))  # type: ignore[arg-type]  # any of its fields


@attrs.frozen
class Shown:
    """Both processes, as an engine would start them."""

    hold: subprocess.Popen[bytes]
    terminal: Terminal


@contextmanager
def shown(shell: list[str], folder: Path, *command: str) -> Iterator[Shown]:
    fifo = str(folder / "fifo")
    given = {"PATH": "/usr/bin:/bin", "WORD": 'it\'s "a\nword" $HOME'}
    with subprocess.Popen([*shell, "-c", HOLD, fifo], env=given, cwd=folder) as hold:
        try:
            with Terminal([*shell, "-c", SHOW, fifo, *command], cwd=Path("/")) as terminal:
                yield Shown(hold, terminal)
        finally:
            hold.kill()


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: str(shell[0]))
def test_the_agent_has_the_holders_variables_and_folder_and_tells_its_exit_code(
    shell: list[str], tmp_path: Path
) -> None:
    script = 'printf "%s|%s" "$WORD" "$PWD"; test -t 0 && exit 7'
    with shown(shell, tmp_path, "sh", "-c", script) as both:
        assert both.terminal.finish(20) == 7
        assert both.hold.wait(20) == 7
        assert f'it\'s "a\nword" $HOME|{tmp_path}' in both.terminal.raw.decode().replace("\r\n", "\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: str(shell[0]))
def test_what_ctrl_z_has_stopped_goes_on(shell: list[str], tmp_path: Path) -> None:
    script = "import signal, os; print('up', flush=True); os.kill(0, signal.SIGTSTP); print('again', input())"
    with shown(shell, tmp_path, sys.executable, "-c", script) as both:
        both.terminal.wait_for("up")
        both.terminal.type("typed\n")
        both.terminal.wait_for("again typed")
        assert both.terminal.finish(20) == 0
        assert both.hold.wait(20) == 0


def test_ctrl_c_is_the_agents_to_read(tmp_path: Path) -> None:
    script = "trap 'echo heard; exit 5' INT; echo up; while :; do sleep 0.1; done"
    with shown(["sh"], tmp_path, "sh", "-c", script) as both:
        both.terminal.wait_for("up")
        both.terminal.type("\x03")
        both.terminal.wait_for("heard")
        assert both.terminal.finish(20) == 5
        assert both.hold.wait(20) == 5


def test_the_holder_ends_with_a_screen_that_is_killed(tmp_path: Path) -> None:
    with shown(["sh"], tmp_path, "sh", "-c", "echo up; exec sleep 60") as both:
        both.terminal.wait_for("up")
        both.terminal.process.kill()
        assert both.hold.wait(20) == 1


def test_a_program_that_is_not_there_is_told_apart(tmp_path: Path) -> None:
    with shown(["sh"], tmp_path, "no-such-agent") as both:
        assert both.terminal.finish(20) == 127
        assert both.hold.wait(20) == 127
    error = ScreenRuntime(ClaudeRuntime()).outcome(None, 127, "")
    assert error is not None
    assert error.kind == "command_not_found"
    assert "image build claude" in error.next_step
    assert ScreenRuntime(ClaudeRuntime()).outcome(None, 130, "") is None


def test_the_engine_is_told_of_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-a-key-of-somebodys")
    runtime = ScreenRuntime(ClaudeRuntime())
    runner = ContainerRunner(runtime, ContainerConfig(image="my/claude", engine="docker"), tmp_path)

    plan = runner.plan(options())
    words = runtime.show(plan)

    assert words[1:3] == ["exec", "--interactive"]
    assert "--tty" in words
    assert [word for word in words if word.startswith("--env")] == [f"--env=CONTAINER_RUNNER_RUN={plan.run_id}"]
    assert f"--user={plan.user}" in words
    assert words[words.index("--") + 1] == plan.container
    assert words[-2:] == ["claude", "--dangerously-skip-permissions"]
    assert plan.values["ANTHROPIC_API_KEY"] == "sk-a-key-of-somebodys"
    assert not any("sk-a-key" in word for word in (*words, *plan.run))


def test_a_functions_server_is_told_to_the_agent_behind_it() -> None:
    given = ScreenRuntime(ClaudeRuntime()).with_server(options(), "ours", "http://127.0.0.1:1", "TOKEN")

    assert "ours" in given.agent.mcp_servers


WORDS = {
    "claude": ["--dangerously-skip-permissions", "--resume=6f1c0c4e-6f3b-4c0c-8f57-6f0e1d8f0a11"],
    "codex": ["resume", "--dangerously-bypass-approvals-and-sandbox", "6f1c0c4e-6f3b-4c0c-8f57-6f0e1d8f0a11"],
    "gemini": ["--approval-mode=yolo", "--resume=6f1c0c4e-6f3b-4c0c-8f57-6f0e1d8f0a11"],
    "qwen": ["--approval-mode=yolo", "--resume=6f1c0c4e-6f3b-4c0c-8f57-6f0e1d8f0a11"],
    "opencode": ["--model=own/model", "--session=6f1c0c4e-6f3b-4c0c-8f57-6f0e1d8f0a11"],
    "copilot": ["--allow-all", "--resume=6f1c0c4e-6f3b-4c0c-8f57-6f0e1d8f0a11"],
}
"""What is said to each beside its settings."""


@pytest.mark.parametrize("kind", KINDS)
def test_each_agent_has_its_own_command_without_what_is_for_programs(kind: str) -> None:
    asked = attrs.evolve(options(model="own/model"), resume="6f1c0c4e-6f3b-4c0c-8f57-6f0e1d8f0a11")

    made = KINDS[kind]().screen(asked)

    said = made.argv[made.argv.index(kind) :]
    assert [word for word in said if word in WORDS[kind]] == WORDS[kind]
    assert not [word for word in said if "json" in word or word in ("-p", "-", "exec", "run")]
    assert made.stdin == b""
    assert made.env == KINDS[kind]().command(asked, contained=True).env


def test_a_command_is_its_own_screen_and_an_object_has_none() -> None:
    assert CommandRuntime("aider --dark-mode").screen(options()).argv == ("aider", "--dark-mode")
    with pytest.raises(UnsupportedRuntimeError, match="PythonRuntime has no screen"):
        PythonRuntime("module:Agent").screen(options())
