"""The command: what it prints, where to, and what it exits with."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
from cyclopts import App
from hypothesis import given
from hypothesis import strategies as st
from pytest_subprocess import FakeProcess

import container_runner
from container_runner.cli import main
from container_runner.cli.app import _Help, app
from container_runner.cli.flags import ConfigFlags, field_help
from container_runner.cli.text import clean, render
from container_runner.config.container import ContainerConfig
from container_runner.config.keys import ELSEWHERE
from container_runner.stream.messages import ErrorMessage, OutputLine, parse_line
from container_runner.testing import Call, FakeEngine
from tests.small_engine import Done, call

pytestmark = pytest.mark.usefixtures("mounted")

Command = Callable[..., Done]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    """Runs a command line in this process, on a folder and a state folder of the test's own."""
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(0o777)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")

    def run(*words: str, box: Sequence[str] = ("--image=my/claude",)) -> Done:
        if words[0] in ("run", "argv"):
            words = (*words, *box, f"--state-dir={tmp_path}/state")
        return call(capfdbinary, *words)

    return run


# The command itself


@pytest.mark.parametrize("words", [["--version"], ["-m"]])
def test_the_version(words: list[str], command: Command) -> None:
    if words == ["-m"]:
        done = subprocess.run([sys.executable, "-m", "container_runner", "--version"], capture_output=True, check=True)
        assert done.stdout.decode() == f"{container_runner.__version__}\n"
    else:
        assert command(*words) == Done(0, f"{container_runner.__version__}\n", "")


@pytest.mark.parametrize("words", [["--help"], ["run", "--help-all"], ["argv", "--help-all"]])
def test_help_names_every_command_and_flag(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Help, "shows_all", False)  # and so it is again afterwards
    with pytest.raises(SystemExit) as caught:
        main(words)

    text = capsys.readouterr().out
    assert not caught.value.code
    assert "\033" not in text
    if words == ["--help"]:
        assert {"run", "argv"} <= set(re.findall(r"\w+", text))
    else:
        flags = {f"--{field.name.replace('_', '-')}" for field in attrs.fields(ContainerConfig)}
        assert flags <= set(re.findall(r"--[a-z-]+", text))


def test_help_shows_the_flags_that_people_need_and_where_the_others_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])

    text = capsys.readouterr().out
    shown = set(re.findall(r"^│ .*?(--[a-z-]+)", text, re.MULTILINE))
    assert {"--workspace", "--image", "--continue", "--memory", "--json"} <= shown
    assert "--cpu-quota" not in text
    assert "more flags are shown by --help-all" in text
    assert len(text.splitlines()) < 60


def test_every_field_of_the_box_has_a_flag_with_its_help() -> None:
    fields = {field.name for field in attrs.fields(ContainerConfig)}

    assert {field.name for field in attrs.fields(ConfigFlags)} == fields
    assert set(field_help(ContainerConfig)) == fields
    assert all(field_help(ContainerConfig).values())


# argv


def test_argv_prints_the_commands_and_runs_nothing(command: Command, fake_engine: FakeEngine, tmp_path: Path) -> None:
    done = command("argv", "Do it.")

    assert (done.code, done.err, fake_engine.calls) == (0, "", [])
    assert done.out.startswith("# on stdin: a header")
    run = shlex.split(done.out, comments=True)
    assert run[:4] == ["docker", "run", "--rm", "--interactive"]
    assert f"--mount=type=bind,src={tmp_path}/work,dst=/workspace" in run
    assert "Do it." not in done.out
    assert not (tmp_path / "state").exists()


def test_argv_as_json_is_the_lists(command: Command, fake_engine: FakeEngine) -> None:
    lists = orjson.loads(command("argv", "--json", "Do it.").out)

    assert [words[:2] for words in lists] == [["docker", "run"]]
    assert lists[0][-5:] == [
        "claude",
        "-p",
        "--output-format=stream-json",
        "--verbose",
        "--dangerously-skip-permissions",
    ]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--memory", "512m"], "--memory=536870912"),
        (["--network=none"], "--network=none"),
        (["--cpus", "1.5"], "--cpus=1.5"),
        (["--pids-limit=99"], "--pids-limit=99"),
        (["--engine=podman"], "--http-proxy=false"),
        (["--label", "a=b"], "--label=a=b"),
        (["--port=8080:80"], "--publish=127.0.0.1:8080:80/tcp"),
        (["--tmpfs=/cache"], "--tmpfs=/cache:rw,nosuid,nodev,noexec,size=67108864,mode=1777"),
        (["--env", "HTTPS_PROXY=http://x"], "--env=HTTPS_PROXY=http://x"),
        (["--user=7:8"], "--user=7:8"),
        (["--extra-arg=--runtime=runsc"], "--runtime=runsc"),
        (["--time-limit=1h"], "3600"),
        (["--model=opus"], "--model=opus"),
        (["--resume=abc", "--fork"], "--fork-session"),
        (["--allowed-tools=Read", "--allowed-tools=Edit"], "--allowedTools=Read,Edit"),
        (["--command=my-agent --fast"], "--fast"),
    ],
)
def test_a_flag_of_ours_becomes_a_word_of_the_engine_or_the_agent(
    command: Command, fake_engine: FakeEngine, flags: list[str], word: str
) -> None:
    done = command("argv", "--json", "x", *flags)

    assert word in [word for words in orjson.loads(done.out) for word in words]


@pytest.mark.parametrize(("flag", "gone"), [("--no-read-only", "--read-only"), ("--no-ephemeral", "--rm")])
def test_a_flag_that_turns_something_off(command: Command, fake_engine: FakeEngine, flag: str, gone: str) -> None:
    assert gone not in [word for words in orjson.loads(command("argv", "--json", "x", flag).out) for word in words]


def test_no_secret_is_printed(command: Command, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cr3t")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "s3cr3t-key")

    done = command("argv", "x", "--secret=MY_TOKEN", "--env=OTHER=s3cr3t-other")

    assert "--env=HOME=" in done.out
    assert "s3cr3t" not in done.out + done.err


# Command lines that are refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "x", "--memory=lots"], "--memory must be a size of at least 6m, such as 512m or 2g; got 'lots'."),
        (["run", "x", "--workspace=/etc"], "--workspace must be "),
        (["run", "x", "--workspace=/nowhere"], "container-runner: --workspace /nowhere: no such folder.\n"),
        (["run", ""], "prompt"),
        (["run", "  \n"], "prompt"),
        (["run", "x", "--agent=-x"], "--agent must be "),
        (["run", "x", "--permission-mode=everything"], "--permission-mode"),
        (["run", "x", "--credentials=all"], '"auto", "env", "file", "inject", "none"'),
        (["run", "x", "--timeout=-1"], "timeout"),
        (["run", "x", "--fork"], "--fork needs --resume ID"),
        (["run", "x", "--allow-host=a.test"], '--allow-host needs network = "gateway": with bridge nothing is asked'),
        (["run", "x", "--continue", "--resume=a"], "--continue and --resume"),
        (["run", "x", "--max-turns=0"], "--max-turns must be a whole number from 1; got 0."),
        (["run", "x", "--env=NOVALUE"], "--env must be NAME=VALUE"),
        (["run", "x", "--command='unclosed"], "command"),
        (["run", "x", "--volume=relative:/x"], "--volume must be "),
        (["argv", "x", "--cpus=many"], "cpus"),
        (["run", "x", "--nosuch"], "nosuch"),
        (["run", "x", "--env=TOKEN"], "--secret TOKEN"),
        (["run", "x", "--label=a"], "--label must be NAME=VALUE"),
        (["run"], "prompt"),
        (["nosuch"], "nosuch"),
        (["run", "x", "--timeout=soon"], "timeout"),
    ],
    ids=" ".join,
)
def test_what_is_refused_exits_with_2_and_says_why(
    command: Command, fake_engine: FakeEngine, words: list[str], says: str
) -> None:
    done = command(*words)

    assert done.code == 2
    assert says.lower() in (done.out + done.err).lower()
    assert "Traceback" not in done.out + done.err
    assert "\033" not in done.out + done.err
    assert fake_engine.calls == []


@pytest.mark.parametrize(
    ("words", "here"),
    [
        (["--rm"], ["--ephemeral"]),
        (["-v", "/opt:/data:ro"], ["--volume=/opt:/data:ro"]),
        (["-e", "A=b"], ["--env=A=b"]),
        (["--name=bot"], ["--agent=bot"]),
        (["-p", "8080:80", "--network=bridge"], ["--port=8080:80", "--network=bridge"]),
        (["-p"], []),
        (["--dangerously-skip-permissions"], ["--permission-mode=bypassPermissions"]),
        (["--allowedTools", "Bash"], ["--allowed-tools=Bash"]),
        (["-r", "00000000-0000-4000-8000-000000000001"], ["--resume=00000000-0000-4000-8000-000000000001"]),
        (["-u", "1000:1000"], ["--user=1000:1000"]),
    ],
    ids=" ".join,
)
def test_flags_of_docker_and_claude_that_mean_the_same_are_taken(
    command: Command, words: list[str], here: list[str], tmp_path: Path
) -> None:
    usual, ours = (command("argv", "--stable", *given, "x") for given in (words, here))

    assert (usual.code, usual.out) == (0, ours.out)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("--privileged", "Here: --extra-arg, if it must be"),
        ("--cap-add=X", "Here: --extra-arg, if it must be"),
        ("-it", "Here: nothing: a run asks nothing"),
        ("--yolo", "Here: nothing: nothing asks here"),
        ("--hostname=x", "Here: --extra-arg, which passes on"),
        ("--settings=x.json", "Here: --setting-source, or"),
        ("--mem-limit=1g", "Here: --memory."),
        ("--cwd=/x", "Here: --workspace."),
        ("--imgae=x", "Did you mean --image?"),
    ],
)
def test_flags_of_other_tools_are_answered_from_the_table_that_files_have(
    command: Command, word: str, says: str
) -> None:
    done = command("run", "x", word)

    assert done.code == 2
    assert f"Unknown option: {word.partition('=')[0]}. {says}" in done.err


def test_a_failure_before_the_agent_began_is_all_there_is_to_say(command: Command, fake_engine: FakeEngine) -> None:
    fake_engine.fail("image_not_found")

    done = command("run", "x")

    assert done.code == 4
    assert "image" in done.out
    assert "after" not in done.err
    assert "No file has changed" not in done.out + done.err


@functools.cache
def flags_of_run() -> frozenset[str]:
    return frozenset(name for argument in app["run"].assemble_argument_collection() for name in argument.names)


@pytest.mark.parametrize("name", [*ELSEWHERE])
def test_no_flag_is_answered_with_one_that_is_not_there(command: Command, name: str) -> None:
    done = command("run", "x", f"--{name.replace('_', '-')}=1")

    if "Unknown option" in done.err:  # others are flags, too
        told = done.err.partition("Here: ")[2].partition("\n")[0]
        flags = {*re.findall(r"--[a-z-]+", told.partition("=--")[0])}
        assert told
        assert flags <= {*flags_of_run(), "--follow", "--jobs"}


@pytest.mark.parametrize("word", ["--remove", "--zzz", "--qwerty=1", "--max-cost"])
def test_no_guess_is_far_fetched(command: Command, word: str) -> None:
    assert "Did you mean" not in command("run", "x", word).err


@pytest.mark.parametrize(
    ("words", "says", "help_of"),
    [
        (["rnu"], 'Did you mean "run"?', ""),
        (["ls"], "Here: container-runner ps.", ""),
        (["exec", "x", "ls"], "Here: container-runner shell AGENT -- COMMAND.", ""),
        (["-V"], "Here: container-runner --version.", ""),
        (["Fix the failing test"], "A command comes first", ""),
        (["run", "x", "."], "A folder is given as --workspace=.", " run"),
        (["run", "--", "--help", "--image=x"], "Behind -- there is the prompt alone", " run"),
        (["run", "-x starts with a dash"], "stands at the end, behind --", " run"),
        (["config", "set", "image", "x"], "change the file that `container-runner init` writes", " config"),
        (["sessions", "rm"], 'Unknown command "rm". Available commands: ', " sessions"),
        (["sesions", "list"], 'Did you mean "sessions"?', ""),
        (["sessions", "lst"], 'Did you mean "list"?', " sessions"),
        (["image", "biuld"], 'Did you mean "build"?', " image"),
        (["config", "schmea"], 'Did you mean "schema"?', " config"),
        (["run", "x", "--memroy=1g"], "Did you mean --memory?", " run"),
        (["ps", "--jsno"], "Did you mean --json?", " ps"),
        (["run", "fix", "the", "tests"], "stands in quotes", " run"),
        (["ps", "x"], 'Nothing takes the word "x"', " ps"),
        (["batch"], "FILE is missing.", " batch"),
        (["shell", "bot", "sh", "-c", "ls"], "shell AGENT -- sh -c", " shell"),
        (["run", "x", "--workspace"], "--workspace requires an argument", " run"),
        (["completion", "tcsh"], '"bash", "zsh", "fish"', " completion"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_misspelt_word_is_answered_with_the_nearest_and_with_where_to_read_on(
    command: Command, fake_engine: FakeEngine, words: list[str], says: str, help_of: str
) -> None:
    done = command(*words, box=())

    first, second = done.err.splitlines()
    assert (done.code, done.out) == (2, "")
    assert first.startswith("container-runner: ")
    assert says in first
    assert second == f"See: container-runner{help_of} --help"


def test_help_is_a_word_too(command: Command) -> None:
    assert command("help", box=()).out == command("--help", box=()).out
    assert command("help", "sessions", "show", box=()).out == command("sessions", "show", "--help", box=()).out


def test_a_word_that_nobody_takes_is_not_repeated_with_its_value(command: Command, fake_engine: FakeEngine) -> None:
    done = command("run", "x", "--env", "A=1", "TOKEN=s3cr3t")

    assert done.code == 2
    assert "TOKEN" in done.err
    assert "s3cr3t" not in done.err


NEEDED = {
    "argv": ["x"],
    "batch": ["jobs.jsonl"],
    "shim": ["claude"],
    "completion": ["bash"],
    "run": ["x"],
    "shell": ["bot"],
}
"""What a command does not work without."""


def chains(group: App, chain: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All commands, each as the words that name it."""
    for name in group:
        if not name.startswith("-"):
            inner = [*chains(group[name], (*chain, name))]
            yield from inner
            if not inner or group[name].default_command is not None:
                yield (*chain, name)


@pytest.mark.parametrize("chain", [*chains(app)], ids=" ".join)
def test_every_command_takes_json_and_explains_itself(
    chain: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*chain, *NEEDED.get(chain[0], []), "--json"]

    called, _, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    with pytest.raises(SystemExit):
        main([*chain, "--help"])
    text = capsys.readouterr().out

    assert called.__module__.startswith("container_runner.cli.")
    assert text.startswith("Usage: ")
    assert "--json" in text
    assert "default: False" not in text
    assert "()" not in text


def test_the_scripts_for_shells_and_the_containerfile_are_there_as_json(command: Command) -> None:
    script = orjson.loads(command("completion", "bash", "--json").out)
    containerfile = orjson.loads(command("image", "containerfile", "--json").out)

    assert script["shell"] == "bash"
    assert script["script"] == command("completion", "bash").out
    assert containerfile == {"containerfile": command("image", "containerfile").out}


def test_an_image_must_be_named(command: Command, fake_engine: FakeEngine) -> None:
    done = command("run", "x", box=())

    assert (done.code, done.out) == (2, "")
    assert "--image" in done.err


def test_an_env_that_is_refused_does_not_show_its_value(command: Command, fake_engine: FakeEngine) -> None:
    done = command("run", "x", "--env=BAD-NAME=s3cr3t")

    assert done.code == 2
    assert "s3cr3t" not in done.err


# run


def test_a_run_shows_what_the_agent_says_and_its_end_on_stderr(command: Command, fake_engine: FakeEngine) -> None:
    fake_engine.reply("It is 4.", session_id="abc-def")

    done = command("run", "2 + 2?")

    assert done.code == 0
    assert "It is 4." in done.lines
    assert "✓ succeeded" in done.err
    assert "✓ succeeded" not in done.out
    assert fake_engine.stdin == b"2 + 2?"


def test_a_run_as_json_is_the_messages_and_nothing_else(command: Command, fake_engine: FakeEngine) -> None:
    fake_engine.messages(["text", '{"type": "result", "subtype": "success", "is_error": false}'])

    done = command("run", "--json", "--credentials=none", "x")

    messages = [orjson.loads(line) for line in done.lines]
    assert [message["type"] for message in messages] == ["output", "result"]
    assert done.err == ""


def test_the_prompt_may_come_on_stdin(
    command: Command, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("--not a flag\nä".encode())))
    fake_engine.reply("Read.")

    assert command("run", "-").code == 0
    assert fake_engine.stdin == "--not a flag\nä".encode()


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    ("exit_code", "lines", "kind", "code"),
    [
        (3, [], "agent_failed", 1),
        (0, [], "incomplete", 7),
        (137, [], "agent_killed", 8),
        (1, ['{"type": "result", "is_error": true, "subtype": "error_max_turns"}'], "agent_failed", 1),
    ],
)
def test_an_agent_that_fails_has_its_exit_code(
    command: Command,
    fake_engine: FakeEngine,
    exit_code: int,
    lines: list[str],
    kind: str,
    code: int,
    as_json: bool,
) -> None:
    fake_engine.messages(lines, exit_code=exit_code)

    done = command("run", "x", *(["--json"] if as_json else []))

    assert done.code == code
    if as_json:
        assert orjson.loads(done.lines[-1])["kind"] == kind
    else:
        assert "✗" in done.out


@pytest.mark.parametrize(
    ("stderr", "code"),
    [
        ("Cannot connect to the Docker daemon at unix:///x. Is it running?", 3),
        ("docker: Error response from daemon: No such image: my/claude", 4),
        ("docker: invalid reference format", 5),
    ],
)
def test_an_engine_that_fails_has_its_exit_code(
    command: Command, fake_engine: FakeEngine, fp: FakeProcess, stderr: str, code: int
) -> None:
    fp.register(["docker", "run", fp.any()], returncode=125, stderr=stderr)
    fake_engine.reply("never said")

    assert command("run", "x").code == code


def test_a_timeout_exits_as_the_timeout_command_does(command: Command, fake_engine: FakeEngine) -> None:
    fake_engine.messages([], hang=True)

    assert command("run", "x", "--timeout=0.2").code == 124


def client_of(engine: FakeEngine) -> Call:
    """The engine's client that ran the latest agent."""
    return next(call for call in engine.calls if call.argv == engine.agent_argv)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_agent_and_removes_its_container(
    command: Command, fake_engine: FakeEngine, number: signal.Signals
) -> None:
    fake_engine.messages([], hang=True)

    def interrupt() -> None:
        while not any(call.argv[1] == "run" for call in fake_engine.calls):
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    done = command("run", "x")

    assert done.code == 128 + number
    assert f"{number.name}: stopping the agent" in done.err
    assert client_of(fake_engine).returncode == 0  # so --rm has removed it


@pytest.mark.parametrize("as_json", [True, False])
def test_a_reader_that_leaves_is_no_traceback(
    command: Command, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    fake_engine.reply("Is anybody there?")
    with os.fdopen(theirs, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        with pytest.raises(SystemExit) as caught:
            main(["run", "x", "--image=i", "--state-dir=state", *(["--json"] if as_json else [])])
        sys.stdout.close()
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), theirs)  # or closing it would fail too

    assert caught.value.code == 141
    assert client_of(fake_engine).returncode == 0  # so --rm has removed it


# What an agent writes is hostile

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
HOSTILE = "a\x1b[2Jb\x07c\x9bd\u202ee\rf\x00g"


def hostile_lines() -> list[dict[str, Any] | str]:
    block = [
        {"type": "text", "text": HOSTILE},
        {"type": "tool_use", "id": HOSTILE, "name": HOSTILE, "input": {HOSTILE: HOSTILE, "nested": [HOSTILE]}},
    ]
    result = [{"type": "tool_result", "tool_use_id": "x", "content": f"{HOSTILE}\n{HOSTILE}", "is_error": True}]
    return [
        HOSTILE,
        {"type": "system", "subtype": "init", "session_id": HOSTILE, "model": HOSTILE},
        {"type": "assistant", "message": {"content": block}},
        {"type": "user", "message": {"content": result}},
        {"type": HOSTILE, "text": HOSTILE},
        {"type": "result", "subtype": HOSTILE, "is_error": True, "result": HOSTILE, "session_id": HOSTILE},
    ]


def test_no_control_character_of_an_agent_reaches_the_terminal(command: Command, fake_engine: FakeEngine) -> None:
    fake_engine.messages(hostile_lines(), exit_code=1, stderr=HOSTILE)

    done = command("run", "x")

    assert not CONTROL.search(done.out)
    assert not CONTROL.search(done.err)
    assert "a�[2Jb�c�d�e" in done.out


def test_as_json_they_are_escaped(command: Command, fake_engine: FakeEngine) -> None:
    fake_engine.messages(hostile_lines(), exit_code=1, stderr=HOSTILE)

    done = command("run", "--json", "x")

    assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.out)
    assert len([orjson.loads(line) for line in done.out.split("\n") if line]) == 7


@given(st.text())
def test_no_text_is_shown_with_a_control_character(text: str) -> None:
    assert not CONTROL.search(clean(text))
    shown = [
        render(OutputLine(text.encode("utf-8", "replace"))),
        render(ErrorMessage(kind="k", message=text, next_step="n", stderr=text)),
    ]
    for part in shown:
        assert part is None or not CONTROL.search(part)


VALUES = st.recursive(
    st.text() | st.integers(-(2**63), 2**63) | st.none(),
    lambda inner: st.dictionaries(st.text(), inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(VALUES)
def test_every_message_can_be_shown(value: Any) -> None:
    content = [value, {"type": "text"}, {"type": "tool_use", "input": value}]
    for kind in ("assistant", "user", "system", "result", "other"):
        message = parse_line(orjson.dumps({"type": kind, "message": {"content": content}, "session_id": value}))
        assert message is not None
        text = render(message)
        assert text is None or not CONTROL.search(text)


def test_nothing_ever_asks_so_no_input_is_understood_everywhere(command: Command, fake_engine: FakeEngine) -> None:
    fake_engine.reply("Hello!")

    assert command("run", "--no-input", "x").code == 0
    assert fake_engine.stdin == b"x"


def test_argv_takes_every_flag_that_run_takes(command: Command, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt"
    prompt.write_text("do it")
    done = command("argv", f"--prompt-file={prompt}", "--session-id=abc", "--tools=Read", "--grace=7", "--json")

    (run,) = json.loads(done.out)
    assert "--session-id=abc" in run
    assert "--tools=Read" in run
