"""`container-runner acp`, with an engine that plays."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest

from tests import played_engine

COMMAND = str(Path(sys.executable).with_name("container-runner"))
AGENT = Path(__file__).parent.parent / "images/acp-agent"


@attrs.frozen
class Editor:
    """Who has started the agent."""

    process: subprocess.Popen[bytes]

    def ask(self, name: int, method: str, **params: Any) -> dict[str, Any]:
        """The answer; what else is said until then is dropped."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        raw = {"jsonrpc": "2.0", "id": name, "method": method, "params": params}
        self.process.stdin.write(orjson.dumps(raw) + b"\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            answer: dict[str, Any] = orjson.loads(line)
            if answer.get("id") == name and "method" not in answer:
                return answer
        return {}


@attrs.frozen
class Place:
    folder: Path

    @contextlib.contextmanager
    def editor(self, *words: str) -> Iterator[Editor]:
        flags = (f"--engine={self.folder}/engine/docker", "--image=some/image", f"--state-dir={self.folder}/state")
        given = {word.partition("=")[0] for word in words}
        own = [flag for flag in flags if flag.partition("=")[0] not in given]
        with subprocess.Popen(
            [COMMAND, "acp", *own, "--credentials=none", *words],
            cwd=self.folder / "work",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            yield Editor(process)

    def refused(self, *words: str) -> tuple[str, str, int]:
        """What the editor and a person are told, and the exit code, where the agent can not be started."""
        with self.editor(*words) as editor:
            answer = editor.ask(0, "initialize", protocolVersion=1)
            out, err = editor.process.communicate(timeout=60)
        assert out == b""
        return answer["error"]["message"], err.decode(), editor.process.returncode


@pytest.fixture
def place(tmp_path: Path) -> Place:
    played_engine.write(tmp_path / "engine", AGENT)
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(0o777)
    return Place(tmp_path)


def test_an_editor_has_its_session_in_the_box(place: Place) -> None:
    with place.editor(f"--command={AGENT}") as editor:
        begun = editor.ask(0, "initialize", protocolVersion=1, clientCapabilities={"terminal": True})
        other = editor.ask(1, "session/new", cwd=str(place.folder), mcpServers=[])
        session = editor.ask(2, "session/new", cwd=str(place.folder / "work"), mcpServers=[])
        # The agent asks to read a file of the editor's, and goes on when it is refused: the editor hears nothing of it.
        turn = editor.ask(3, "session/prompt", sessionId="s1", prompt=[{"type": "text", "text": "broken"}])
        out, err = editor.process.communicate(timeout=60)

    assert begun["result"]["agentInfo"]["name"] == "scripted"
    assert "the container has no such path" in other["error"]["message"]
    assert session["result"]["sessionId"] == "s1"
    assert turn["result"]["stopReason"] == "end_turn"
    assert (out, editor.process.returncode) == (b"", 0), err
    assert b"The agent wrote what is no message: a warning" in err


def test_a_known_agent_needs_its_kind_alone(place: Place) -> None:
    with place.editor("--agent-kind=copilot"):
        pass

    (run,) = (call["argv"] for call in played_engine.calls(place.folder / "engine") if "prompt" in call)
    assert run[-4:] == ["copilot", "--acp", "--no-auto-update", "--disable-client-telemetry"]


def test_an_agent_that_dies_answers_what_is_open(place: Place) -> None:
    with place.editor(f"--command={AGENT}") as editor:
        editor.ask(2, "session/new", cwd=str(place.folder / "work"), mcpServers=[])
        turn = editor.ask(3, "session/prompt", sessionId="s1", prompt=[{"type": "text", "text": "die"}])
        _, err = editor.process.communicate(timeout=60)

    assert turn["error"]["code"] == -32603
    assert "exited with code 3" in turn["error"]["message"]
    assert b"exited with code 3" in err
    assert editor.process.returncode == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--agent-kind=claude",), "--agent-kind=claude-agent-acp"),
        (("--agent-kind=codex",), "--agent-kind=codex-acp"),
        (("--agent-kind=nobody",), "gemini, qwen, opencode"),
        (("--agent-kind=gemini", "--resume=x"), "the editor's to say"),
        (("--agent-kind=gemini", "--permission-mode=plan"), "the editor's to say"),
        (("--python=a:b",), "give --command"),
        (("--acp=",), "a command, as a shell splits it"),
        (("--acp='",), "No closing quotation"),
        (("--agent-kind=gemini", "--workspace=/nowhere/at/all"), "/nowhere/at/all"),
        (("--agent-kind=gemini", "--network=odd network"), "network"),
    ],
)
def test_what_can_not_be_started_is_told_the_editor_too(place: Place, words: tuple[str, ...], told: str) -> None:
    to_editor, to_person, code = place.refused(*words)

    assert told in to_editor
    assert told in to_person
    assert code == 2


def test_an_engine_that_is_not_there_is_told_the_editor_too(place: Place) -> None:
    to_editor, to_person, code = place.refused("--agent-kind=gemini", f"--engine={place.folder}/no/docker")

    assert "docker" in to_editor
    assert "docker" in to_person
    assert code == 3


def test_what_the_agent_says_to_stderr_controls_nothing(place: Place) -> None:
    (agent := place.folder / "hostile").write_text("#!/bin/sh\nprintf 'h\\303\\251 \\033]0;mine\\007\\n' >&2\n")
    agent.chmod(0o755)
    with place.editor(f"--command={agent}") as editor:
        _, err = editor.process.communicate(timeout=60)

    odd = "\N{REPLACEMENT CHARACTER}"
    assert err.decode() == f"hé {odd}]0;mine{odd}\n"
