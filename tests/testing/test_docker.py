"""`container-runner-fake-docker`, as programs in any language use it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

import container_runner
from container_runner.box import guest, script
from container_runner.testing import container
from tests.small_engine import Done, call

PROGRAM = '#!/bin/sh\nPYTHONPATH="{path}" exec "{python}" -m container_runner.testing.docker "$@"\n'


@attrs.frozen
class Place:
    """A folder with a workspace and the program."""

    folder: Path
    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def run(self, *words: str, **variables: str) -> Done:
        """What the command makes of it."""
        own = (f"--engine={self.folder / 'docker'}", "--image=some/image", f"--state-dir={self.folder / 'state'}")
        with self.patch.context() as patch:
            patch.chdir(self.folder / "work")
            patch.setenv("CONTAINER_RUNNER_WORKSPACE_MODE", "rw")
            patch.setenv("DOCKER_FAKE_CALLS", str(self.folder / "calls"))
            for name, value in variables.items():
                patch.setenv(name, value)
            return call(self.capture, "run", *words, *own, "--credentials=none", "--agent=bot")

    def replies(self, *replies: Mapping[str, Any] | str) -> dict[str, str]:
        """The variable that names a file with these replies."""
        file = self.folder / "replies.jsonl"
        file.write_text("\n".join(reply if isinstance(reply, str) else json.dumps(reply) for reply in replies))
        return {"DOCKER_FAKE_REPLIES": str(file)}

    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Place:
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(0o777)
    path = Path(container_runner.__file__).parent.parent
    (tmp_path / "docker").write_text(PROGRAM.format(path=path, python=sys.executable))
    (tmp_path / "docker").chmod(0o755)
    return Place(tmp_path, monkeypatch, capfd)


def test_the_first_reply_that_fits_is_given(place: Place) -> None:
    replies = place.replies(
        {"text": "no", "prompt": "another"},
        {"text": "no", "agent": "somebody"},
        "",
        {"text": "It is 4.", "pattern": r"2 \+ 2", "agent": "bot", "cost_usd": 0.25, "usage": {"output_tokens": 7}},
        {"text": "anything"},
    )

    done = place.run("What is 2 + 2?", "--secret=TOKEN", "--grace=7", TOKEN="s3cr3t", **replies)

    assert (done.code, done.out.splitlines()[-1]) == (0, "It is 4.")
    assert "7 tokens, $0.25" in done.err
    run = next(call for call in place.calls() if call["argv"][0] == "run")
    assert (run["prompt"], run["grace"], run["variables"]) == ("What is 2 + 2?", "7", {"TOKEN": "s3cr3t"})
    assert "s3cr3t" not in " ".join(run["argv"])
    assert place.run("Hello", **replies).out.splitlines()[-1] == "anything"


@pytest.mark.parametrize(
    ("reply", "code", "told"),
    [
        ({"fail": "image_not_found"}, 4, "The image is not on this machine."),
        ({"fail": "out_of_memory"}, 9, "ran out of memory"),
        ({"text": "", "error": "It broke."}, 1, "claude failed: It broke."),
    ],
)
def test_failures(place: Place, reply: Mapping[str, Any], code: int, told: str) -> None:
    done = place.run("Hello", **place.replies(reply))

    assert done.code == code, done.err
    assert told in done.out


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ({"text": "x", "prompt": "another"}, "none in {file} fits the prompt 'Hello' of agent 'bot'"),
        ("not JSON", "{file}:1: Expecting value"),
        ({"txt": "x"}, "{file}:1: as_claude() got an unexpected keyword argument 'txt'"),
        ({"fail": "nothing"}, '{file}:1: "fail" stands alone, and is one of agent_failed,'),
        ({"text": "x", "pattern": "("}, "{file}:1: missing )"),
    ],
)
def test_what_can_not_be_played_is_told(
    place: Place, reply: Mapping[str, Any] | str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = place.replies(reply).values()
    monkeypatch.setenv("DOCKER_FAKE_REPLIES", file)

    with pytest.raises(ValueError, match=re.escape(told.format(file=file))):
        container._reply("bot", "Hello")


def test_without_variables_it_says_which_there_are(place: Place) -> None:
    assert "set DOCKER_FAKE_REPLIES or DOCKER_FAKE_AGENT" in place.run("Hello").out


def test_an_agent_of_this_machine_works_in_the_workspace_and_is_stopped(place: Place) -> None:
    agent = place.folder / "agent"
    agent.write_text("#!/bin/sh\ncat >made.txt\necho $$ >pid\n[ ! -s made.txt ] || exec sleep 1000\n")
    agent.chmod(0o755)

    done = place.run("Hello", "--timeout=3", DOCKER_FAKE_AGENT=str(agent))

    assert done.code == 124, done.err
    assert (place.folder / "work/made.txt").read_text() == "Hello"
    with pytest.raises(ProcessLookupError):
        os.kill(int((place.folder / "work/pid").read_text()), 0)


@attrs.frozen
class Live:
    """A live run of the program alone, whose FIFO lies in a folder of its own."""

    process: subprocess.Popen[bytes]
    temp: Path
    variables: dict[str, str]
    program: Path

    @classmethod
    def start(cls, place: Place) -> Live:
        (temp := place.folder / "temp").mkdir()
        program = place.folder / "docker"
        variables = {**os.environ, "TMPDIR": str(temp), "DOCKER_FAKE_AGENT": "cat"}
        words = [
            "run",
            "--rm",
            "--interactive",
            "some/image",
            "sh",
            "-c",
            script.SEAL,
            RUN,
            script.GUEST,
            "9",
            "claude",
        ]
        pipe = subprocess.PIPE
        process = subprocess.Popen([program, *words], env=variables, stdin=pipe, stdout=pipe, stderr=pipe)
        assert process.stdin is not None
        assert process.stderr is not None
        header = guest.header(
            b"", token="t0k3n", grace=0, mounts=(), kernel="", other_mounts=True, values={}, live=True
        )
        process.stdin.write(header)
        process.stdin.flush()
        assert process.stderr.readline().startswith(guest.started_line("t0k3n"))
        return cls(process, temp, variables, program)

    def feed(self, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        words = ["exec", "--interactive", "name", "sh", "-c", script.FEED, RUN]
        return subprocess.run(
            [self.program, *words], env=self.variables, input=data, check=False, capture_output=True, timeout=60
        )


RUN = "0123456789abcdef"


def test_a_live_agent_gets_what_it_is_fed(place: Place) -> None:
    live = Live.start(place)
    assert len([*live.temp.iterdir()]) == 1

    fed = live.feed(b"one\ntwo\n")
    out, err = live.process.communicate(timeout=60)

    assert (fed.returncode, fed.stderr) == (0, guest.feeding_line(RUN) + b"\n")
    assert out == b"one\ntwo\n\ncontainer-runner: ended t0k3n 0\n"
    assert err == b"container-runner: ended t0k3n 0\n"
    assert [*live.temp.iterdir()] == []


@pytest.mark.parametrize("how", ["lease", "term"])
def test_a_live_start_that_is_cut_leaves_nothing(place: Place, how: str) -> None:
    """Nobody has come to feed it: it ends with its lease, or by TERM, and its FIFO goes with it."""
    live = Live.start(place)
    assert len([*live.temp.iterdir()]) == 1

    if how == "term":
        os.kill(live.process.pid, signal.SIGTERM)
        assert live.process.wait(60) == 128 + signal.SIGTERM
    live.process.communicate(timeout=60)

    assert [*live.temp.iterdir()] == []
    assert live.feed().returncode == script.EXIT_REFUSED


def test_it_needs_no_pytest() -> None:
    code = "import sys, container_runner.testing.container; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {"pytest", "pytest_subprocess", "anyio"} & set(loaded)


def test_a_carried_workspace_can_not_be_played_and_says_so(place: Place) -> None:
    done = place.run("Hello", **place.replies({"text": "Hi."}), CONTAINER_RUNNER_WORKSPACE_MODE="carried")

    assert done.code == 5
    assert "on a mounted workspace only; give --rw" in done.out
