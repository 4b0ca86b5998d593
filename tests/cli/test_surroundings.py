"""Odd surroundings are told in a line, and never as a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from container_runner import cli
from container_runner.cli import run_command
from container_runner.cli.surroundings import open_what_is_closed
from container_runner.errors import ConfigError

ARGV = ("argv", "x", "--image=x", "--engine=docker")


def run(place: Path, words: Sequence[str], *, by: str) -> tuple[int, str]:
    """A command line, by words of a shell in front of it, in *place*; its exit code and what it wrote to stderr."""
    surroundings = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(place)}
    command = ["sh", "-c", f'{by} "$@"', "sh", sys.executable, "-m", "container_runner", *words]
    done = subprocess.run(
        command, cwd=place, env=surroundings, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.fixture
def place(open_folder: Path) -> Path:
    (open_folder / "work").mkdir()
    (open_folder / "work").chmod(0o777)
    return open_folder


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes a user that has no entry")
@pytest.mark.parametrize("home", ["unset HOME;", "HOME=;"])
def test_a_user_without_a_home(place: Path, home: str) -> None:
    nobody = f"{home} exec setpriv --reuid=4242 --regid=4242 --clear-groups --"

    code, said = run(place, [*ARGV, "--workspace=work"], by=nobody)
    assert code == 2
    assert said.startswith("container-runner: HOME is missing: give the path of a folder of yours")
    named = ["--state-dir=state", "--config=/dev/null", "--workspace=work"]
    assert run(place, [*ARGV, *named], by=nobody) == (0, "")


@pytest.mark.parametrize("words", [ARGV, ("config",), ("logs",), ("sessions", "list")], ids=lambda words: words[0])
def test_a_current_folder_that_is_not_there_any_more(place: Path, words: Sequence[str]) -> None:
    code, said = run(place, words, by="mkdir gone; cd gone; rmdir ../gone; exec")

    assert (code, said) == (5, "container-runner: The current folder: No such file or directory.\n")


@pytest.mark.parametrize("words", [("config",), ("--help",), ("--version",), ("logs", "--list", "--json")])
def test_an_output_that_is_full(place: Path, words: Sequence[str]) -> None:
    code, said = run(place, words, by="exec >/dev/full; exec")

    assert (code, said) == (5, "container-runner: The output: No space left on device.\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", [("argv", "-", "--image=x", "--engine=docker"), ("sessions", "list"), ("--version",)])
def test_streams_that_are_closed(place: Path, words: Sequence[str], closed: str) -> None:
    code, _ = run(place, words, by=f"exec {closed}; exec")

    assert code == (2 if words[0] == "argv" else 0)  # an empty prompt is refused


def test_a_stream_that_is_closed_is_nobody_elses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that is opened later would have its number, and get what is printed."""
    kept = os.dup(1)
    try:
        os.close(1)
        monkeypatch.setattr(sys, "stdout", None)
        open_what_is_closed()
        print("to nobody", flush=True)
        assert (str(Path("/proc/self/fd/1").readlink()), sys.stdout.fileno()) == (os.devnull, 1)
    finally:
        sys.stdout.close()
        os.dup2(kept, 1)
        os.close(kept)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RecursionError("too deep"), 1, "nested too deeply"),
        (OSError(28, "No space left on device", "/x"), 5, "/x: No space left on device."),
        (ExceptionGroup("g", [ExceptionGroup("g", [OSError(5, "Input/output error", "/x")])]), 5, "/x: Input/output"),
        (BrokenPipeError(), 141, ""),
        (ExceptionGroup("g", [BrokenPipeError()]), 141, ""),
        (KeyboardInterrupt(), 130, ""),
        (ConfigError("x", 1, "y"), 2, "x must be y"),
    ],
    ids=repr,
)
def test_what_a_command_may_meet(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: object) -> int:
        raise error

    before = sys.stdout
    monkeypatch.setattr(sys, "stdout", before)
    monkeypatch.setattr(cli, "_run", fail)

    assert run_command(["x"]) == code
    if sys.stdout is not before:
        sys.stdout.close()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [ValueError("x"), ExceptionGroup("g", [OSError(5, "x"), ValueError("x")])], ids=["alone", "beside one"]
)
def test_a_fault_of_ours_is_not_hidden(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)

    with pytest.raises(type(error)):
        run_command(["x"])


@pytest.mark.parametrize("depth", [253, 1_000, 200_000])
@pytest.mark.parametrize("how", [(), ("--json",), ("--html=out.html",)], ids=["text", "json", "html"])
def test_a_session_that_an_agent_nested_deeply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int, how: Sequence[str]
) -> None:
    folder = tmp_path / "state/sessions/bot/projects/-workspace"
    folder.mkdir(parents=True)
    block = '{"type":"tool_use","id":"a","name":"X","input":{"x":' + "[" * depth + "]" * depth + "}}"
    (folder / "deep.jsonl").write_text(
        '{"type":"user","message":{"role":"user","content":"hi"}}\n{"type":"assistant","message":{"content":[' + block
        + "]}}\n"
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert run_command(["sessions", "show", "deep", "--agent=bot", "--state-dir=state", *how]) == 0
