"""`container-runner chat`, with an agent that is played: by a pipe, and at a terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from container_runner.cli.chat import with_sessions
from container_runner.cli.flags import ConfigFlags, RunFlags, prepare
from tests import played_engine
from tests.session import agent
from tests.terminal import Terminal

COMMAND = str(Path(sys.executable).with_name("container-runner"))


@attrs.frozen
class Place:
    """A workspace, and the command with an engine that plays."""

    folder: Path

    @property
    def command(self) -> list[str]:
        flags = (f"--engine={self.folder}/engine/docker", "--image=some/image", f"--state-dir={self.folder}/state")
        return [COMMAND, "chat", *flags, "--credentials=none", "--rw"]

    def chat(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *words],
            cwd=self.folder / "work",
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def arguments(self) -> list[str]:
        """What the agent was started with."""
        (run,) = (call["argv"] for call in played_engine.calls(self.folder / "engine") if call["argv"][0] == "run")
        found: list[str] = run[run.index("--") :]
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    program = tmp_path / "agent"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -S {agent.__file__}\n")
    program.chmod(0o755)
    played_engine.write(tmp_path / "engine", program)
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(0o777)
    return Place(tmp_path)


def test_each_line_of_stdin_is_a_turn(place: Place) -> None:
    done = place.chat(stdin="say one\n\nsay two")

    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line in ("one", "two")] == ["one", "two"]
    assert "--resume=s1" in done.stderr
    assert "--dangerously-skip-permissions" in place.arguments()


def test_without_a_stdin_the_first_prompt_is_all(place: Place) -> None:
    done = subprocess.run(
        [*place.command, "say hello"], cwd=place.folder / "work", stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "hello" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--apply=clean",), "--carried beside it"),
        (("--acp=goose acp", "--agent-kind=gemini"), "--acp and --agent-kind exclude each other"),
        (("--acp=",), "--acp"),
        (("--json", "--live"), "--live and --json exclude each other"),
        (("--acp=it's",), "--acp"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_starts(place: Place, words: tuple[str, ...], told: str) -> None:
    done = place.chat("say x", *words)

    assert done.returncode == 2, done.stderr
    assert told in done.stderr


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ({"acp": "goose acp"}, ("goose", "acp")),
        ({"agent_kind": "gemini"}, ("gemini", "--acp")),
        ({"agent_kind": "opencode", "model": "a/b"}, ("opencode", "acp")),
        ({"agent_kind": "claude"}, ("claude", "--output-format=stream-json")),
    ],
)
def test_agents_that_speak_acp_are_started_so(
    given: dict[str, Any], command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runner, options = prepare("", RunFlags(**given), None, ConfigFlags(image="i", engine="docker"))

    argv = with_sessions(runner).runtime.live(options, asks=False, tools=()).argv

    assert argv[:2] == command


def test_the_first_prompt_may_be_an_argument(place: Place) -> None:
    done = place.chat("say hello", "--json")

    assert done.returncode == 0, done.stderr
    results = [json.loads(line).get("result") for line in done.stdout.splitlines()]
    assert results[-1] == "hello"


def test_an_agent_that_dies_is_told_as_in_any_run(place: Place) -> None:
    done = place.chat(stdin="die 3\n")

    assert done.returncode == 1, done.stderr
    assert "container-runner: claude ended with exit code 3" in done.stderr or "code 3" in done.stderr


def test_nobody_answers_at_a_pipe(place: Place) -> None:
    done = place.chat("--ask", stdin="say x\n")

    assert done.returncode == 2
    assert "--ask" in done.stderr


def asks(text: str) -> bool:
    """Whether the next prompt is asked for: what is typed before is drawn over by the live view."""
    return text.endswith("\n>")


@pytest.mark.parametrize("word", ["--command=mute", "--agent-kind=codex", "--python=my.module:make"])
def test_an_agent_without_sessions_is_refused_before_anything_starts(place: Place, word: str) -> None:
    done = place.chat("say x", word)

    assert done.returncode == 2, done.stderr
    assert "has no live sessions" in done.stderr
    assert not (place.folder / "engine/calls").exists()


def test_what_is_waited_for_is_told_and_the_waiting_can_be_ended(place: Place) -> None:
    (place.folder / "agent").write_text("#!/bin/sh\nexec sleep 100\n")
    soon = "import container_runner.cli.chat as it; it.QUIET = 0.1; from container_runner.cli import main; main()"
    command = [sys.executable, "-c", soon, *place.command[1:], "say x"]
    with subprocess.Popen(command, cwd=place.folder / "work", stderr=subprocess.PIPE, text=True) as chat:
        assert chat.stderr is not None
        told = next(line for line in chat.stderr if "has started" in line)
        chat.send_signal(signal.SIGINT)
        rest = chat.stderr.read()

    assert "The agent has started, and has not said yet that it takes prompts; it has 60 seconds for that." in told
    assert "Traceback" not in rest
    assert chat.returncode == 130


def test_at_a_terminal_a_person_answers_interrupts_and_leaves(place: Place) -> None:
    with Terminal([*place.command, "--ask", "--live"], cwd=place.folder / "work") as terminal:
        terminal.wait_for(">")
        terminal.type("may rm -rf x\n")
        terminal.wait_for("[y]es, [n]o")
        assert "Bash: rm -rf x" in terminal.text
        terminal.type("maybe\n")
        terminal.type("n\n")
        terminal.wait_for(asks)
        terminal.type("say fine\n")
        terminal.wait_for(lambda text: text.count("fine") == 2 and asks(text))
        terminal.type("hang\n")
        terminal.wait_for("Ctrl-C stops")
        terminal.type("\x03")
        terminal.wait_for("Interrupting")
        terminal.wait_for(asks)
        terminal.type("say still here\n")
        terminal.wait_for(lambda text: text.count("still here") == 2)
        terminal.type("\x03")
        terminal.wait_for("and so does Ctrl-D")
        terminal.type("\x03")

        assert terminal.finish() == 130
