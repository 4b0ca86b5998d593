"""`container-runner run` as a script uses it: prompts, flags, the lines at its end. `test_live.py` has the terminal."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from container_runner.cli import look
from container_runner.cli import run as run_module
from container_runner.cli.run import JsonView, PlainView
from container_runner.cli.text import clean, line, tool_call
from container_runner.stream.messages import OutputLine, parse_message
from tests import played_engine
from tests.small_engine import call

pytestmark = pytest.mark.usefixtures("mounted")

COMMAND = str(Path(sys.executable).with_name("container-runner"))


@attrs.frozen
class Place:
    """A workspace, and the command with an engine that plays."""

    folder: Path
    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[bytes]

    @property
    def workspace(self) -> Path:
        return self.folder / "work"

    @property
    def flags(self) -> list[str]:
        engine = f"--engine={self.folder / 'engine' / 'docker'}"
        return [engine, "--image=some/image", f"--state-dir={self.folder / 'state'}", "--credentials=none"]

    def run(self, *words: str, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """What comes of a command line: in a process of its own if something is piped in or its variables are others,
        and else in this one, which is faster."""
        given = {word.partition("=")[0] for word in words}
        words = (*words, *(flag for flag in self.flags if flag.partition("=")[0] not in given))
        if not stdin and env is None:
            with (self.folder / "nothing").open("w+") as nothing, self.patch.context() as patch:
                patch.chdir(self.workspace)
                patch.setattr(sys, "stdin", nothing)
                done = call(self.capture, *words)
            return subprocess.CompletedProcess(words, done.code, done.out, done.err)
        return subprocess.run(
            [COMMAND, *words],
            cwd=self.workspace,
            input=stdin,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def agent_argv(self) -> list[str]:
        """The latest command that ran an agent."""
        return [str(word) for word in self.agent_call()["argv"]]

    def agent_call(self) -> dict[str, Any]:
        """All that is known of it."""
        (*_, last) = (call for call in played_engine.calls(self.folder / "engine") if call["argv"][0] == "run")
        return last


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Place:
    place = Place(tmp_path, monkeypatch, capfdbinary)
    place.workspace.mkdir()
    if os.geteuid() == 0:
        os.chown(place.workspace, 1000, 1000)
    played_engine.write(tmp_path / "engine")
    return place


def test_the_end_tells_what_changed_and_how_to_go_on(place: Place) -> None:
    (place.workspace / "old.txt").write_text("old\n")
    (place.workspace / "gone.txt").write_text("gone\n")

    done = place.run("run", "edit new.txt hello\nedit old.txt newer\nsh rm gone.txt")

    assert done.returncode == 0, done.stderr
    assert "● Edit new.txt\n  └ new.txt has been updated\n" in done.stdout
    first, *rest = done.stderr.splitlines()
    assert first.startswith("✓ succeeded after ")
    assert first.endswith("turns, 8 tokens, $0.0125")
    assert rest[:4] == ["  3 files have changed:", "    - gone.txt", "    + new.txt", "    ~ old.txt"]
    assert "\x1b" not in done.stdout + done.stderr


def test_the_command_at_the_end_goes_on_with_the_session(place: Place) -> None:
    first = place.run("run", "hello", "--memory=1g", "--label", "a=b", "--system-prompt=Be it's self", "--no-read-only")
    again = shlex.split(first.stderr.splitlines()[-1])
    resume = next(word for word in again if word.startswith("--resume="))

    second = place.run(*again[1:-1], "hello again")

    assert again[:2] == ["container-runner", "run"]
    assert {"--memory=1g", "--label=a=b", "--system-prompt=Be it's self", "--no-read-only"} <= {*again}
    assert second.returncode == 0, second.stderr
    assert resume in place.agent_argv()
    assert resume in second.stderr
    assert second.stderr.count("--resume=") == 1


def test_the_command_at_the_end_has_no_values_of_variables(place: Place) -> None:
    done = place.run("run", "hello", "--env=TOKEN=hunter2", "--extra-arg=--env=OTHER=hunter2")

    assert "--resume=" in done.stderr
    assert "--env=TOKEN=…" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_a_session_that_the_agent_does_not_know_is_not_offered(place: Place) -> None:
    result = {
        "type": "result", "subtype": "error_during_execution", "is_error": True, "num_turns": 0,
        "session_id": "00000000-0000-4000-8000-000000000000", "errors": ["No conversation found with that id"],
    }  # fmt: skip
    agent = shlex.join(["sh", "-c", f"printf '%s\\n' {shlex.quote(json.dumps(result))}; exit 1"])

    done = place.run("run", "x", f"--command={agent}")

    assert done.returncode == 1
    assert "--resume=" not in done.stderr


def test_a_session_that_could_not_be_resumed_is_not_offered(place: Place) -> None:
    result = {"type": "result", "subtype": "success", "is_error": False, "session_id": "x; rm -rf ~"}
    agent = shlex.join(["printf", "%s\\n", json.dumps(result)])

    done = place.run("run", "x", f"--command={agent}")

    assert done.returncode == 0, done.stderr
    assert "rm -rf" not in done.stderr
    assert "No file has changed." in done.stderr


def test_names_of_files_can_not_control_the_terminal(place: Place) -> None:
    done = place.run("run", "sh : >\"$(printf 'a\\033[2Jb\\n    + forged\\377')\"")

    assert done.returncode == 0, done.stderr
    assert "    + a\N{REPLACEMENT CHARACTER}[2Jb␤    + forged" in done.stderr
    assert "\n    + forged" not in done.stderr


def test_a_new_file_that_programs_obey_is_pointed_out(place: Place) -> None:
    (place.workspace / ".bashrc").touch()

    first = place.run("run", "edit .envrc evil")
    second = place.run("run", "edit .envrc evil")
    third = place.run("run", "edit .zshrc good\nsh mkdir .git; echo x > .git/config", "--unprotected=.zshrc")

    assert "  ! The agent made .envrc: look inside before" in first.stderr
    assert "!" not in second.stderr
    assert "  ! The agent made .git: look" in third.stderr


def test_a_setuid_file_is_told_once(place: Place) -> None:
    first = place.run("run", "sh cp /bin/true here; chmod 4755 here; mkdir d; chmod 2755 d")
    second = place.run("run", "hello")

    assert "  ! Whoever runs here gets the rights of its owner (setuid). Type: chmod a-s FILE" in first.stderr
    assert "rights of its owner" not in second.stderr


PLANT = """
sh git init --quiet node_modules/.x && cd node_modules/.x && git commit --quiet --allow-empty --message=x
sh git add -f node_modules/.x 2>/dev/null
sh git config core.fsmonitor evil
sh git init --quiet sub; mkdir -p .github/workflows; touch .github/workflows/ci.yml
"""


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_what_git_would_run_from_now_on_is_pointed_out(place: Place) -> None:
    home = place.folder / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[user]\nname = a\nemail = a@b\n[safe]\ndirectory = *\n")
    environ = {"HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "--quiet"], cwd=place.workspace, env={**os.environ, **environ}, check=True)
    (place.workspace / ".vscode").mkdir()
    (place.workspace / ".vscode/tasks.json").touch()
    subprocess.run(["git", "add", "--all"], cwd=place.workspace, env={**os.environ, **environ}, check=True)

    done = place.run("run", PLANT.strip(), env=environ)
    again = place.run("run", "hello", "--unprotected=.vscode", env=environ)

    told = [line for line in done.stderr.splitlines() if "! " in line]
    assert told == [
        "! Tracked files are read-only for the agent: .vscode. A checkout, merge or reset that changes them ends "
        "half-way. --unprotected=.vscode lets it write them.",
        "  ! The agent made sub/.git: look inside before a program of yours obeys it.",
        "  ! Git takes node_modules/.x for repositories of their own now, and runs what is configured in them.",
        "  ! Changed while the agent ran, and so not protected from then on: .git/config: look inside.",
        "  ! Programs obey .github/workflows: look at the change first.",
    ]
    assert "!" not in again.stderr


def test_a_folder_of_a_repository_is_told_where_that_is(place: Place) -> None:
    (place.workspace / ".git").mkdir()
    (place.workspace / "sub").mkdir()
    os.chown(place.workspace / "sub", *((1000, 1000) if os.geteuid() == 0 else (-1, -1)))

    done = place.run("run", "hello", "--workspace=sub")

    assert done.stderr.startswith("! Git finds no repository in the container: it is above the workspace. ")
    assert f"--workspace={place.workspace} gives all of it." in done.stderr


def test_a_workspace_with_too_many_files_is_not_compared(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "MOST_FILES", 3)
    for name in "abcd":
        (place.workspace / name).touch()

    done = place.run("run", "hello")

    assert "too many files" in done.stderr


def test_the_first_line_is_one_line(place: Place) -> None:
    init = {"type": "system", "subtype": "init", "session_id": "a\n✓ forged", "model": "b\n✓ forged"}

    done = place.run("run", "x", f"--command={shlex.join(['printf', '%s', json.dumps(init)])}")

    assert done.stdout == "· session a ✓ forged, model b ✓ forged\n"


async def test_a_stdout_that_is_no_file_gets_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that calls the command and keeps what it prints."""
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)

    await PlainView().take(
        parse_message({"type": "assistant", "message": {"content": [{"type": "text", "text": "é"}]}})
    )
    await JsonView().take(OutputLine(b"raw"))

    text, raw = stdout.getvalue().splitlines()
    assert "é" in text
    assert json.loads(raw)["type"] == "output"


def test_a_failure_is_told_with_what_to_do(place: Place) -> None:
    done = place.run("run", "fail It did not work.")

    assert done.returncode == 1
    assert "✗ claude failed: It did not work." in done.stdout
    assert done.stderr.startswith("✗ failed after ")


def test_json_is_the_messages_and_nothing_else(place: Place) -> None:
    done = place.run("run", "edit made.txt hello", "--json")

    assert [json.loads(row)["type"] for row in done.stdout.splitlines()][::3] == ["system", "assistant"]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("text", ["what to do", "-- begins with dashes", "two\nlines"])
def test_a_prompt_comes_as_an_argument_from_stdin_or_from_a_file(place: Place, text: str) -> None:
    (place.folder / "prompt").write_text(text)

    given = [
        place.run("run", "--prompt-file", str(place.folder / "prompt")),
        place.run("run", "-", stdin=text),
        *([] if text.startswith("-") else [place.run("run", text)]),
    ]

    for done in given:
        assert done.returncode == 0, done.stderr
        assert all(row in done.stdout for row in text.split("\n"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nothing came on stdin"),
        (["hello", "--prompt-file=/etc/hostname"], "not both"),
        (["--prompt-file=/no/such/file"], "no such file"),
        (["--prompt-file=/dev/null"], "some text"),
        (["-"], "nothing came on stdin"),
        (["hello", "--grace=1000"], "grace"),
        (["hello", "--line-limit=9"], "--line-limit"),
        (["hello", "--line-limit=lots"], "--line-limit"),
        (["hello", "--session-id=../x"], "--session-id"),
        (["hello", "--mcp-config=/no/such/file"], "no such file"),
        (["hello", "--mcp-config=/dev/null"], "JSON"),
        (["hello", "--agent-kind=nobody"], "claude, codex, gemini, qwen, opencode or copilot"),
        (["hello", "--agent-kind=codex", "--command=x"], "exclude each other"),
        (["hello", "--agent-kind=codex", "--max-turns=3"], "codex has nothing for --max-turns"),
        (["hello", "--base-url=https://me:secret@models.example"], "without a login"),
    ],
)
def test_what_is_refused_is_named_before_anything_starts(place: Place, words: list[str], told: str) -> None:
    done = place.run("run", *words)

    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place.folder / "engine" / "calls").exists()


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--tool=Read", "--tool=Edit"], "--tools=Read,Edit"),
        (["--tool="], "--tools="),
        (["--setting-source=project"], "--setting-sources=project"),
        (["--setting-source="], "--setting-sources="),
        (["--plugin-dir=/workspace/plugin"], "--plugin-dir=/workspace/plugin"),
        (["--arg=--fast"], "--fast"),
        (["--session-id=abc"], "--session-id=abc"),
        (["--include-partial-messages"], "--include-partial-messages"),
    ],
)
def test_flags_reach_the_agent(place: Place, flags: list[str], word: str) -> None:
    done = place.run("run", "hello", *flags)

    assert done.returncode == 0, done.stderr
    assert word in place.agent_argv()


def test_the_grace_period_reaches_the_script_around_the_agent(place: Place) -> None:
    assert place.run("run", "hello", "--grace=7").returncode == 0

    assert place.agent_call()["grace"] == "7"


def test_mcp_servers_come_from_a_file(place: Place) -> None:
    servers = {"files": {"command": "mcp-files", "args": ["--root=/workspace"]}}
    for text in (json.dumps(servers), json.dumps({"mcpServers": servers})):
        (place.folder / "mcp.json").write_text(text)

        place.run("run", "hello", f"--mcp-config={place.folder / 'mcp.json'}")

        (given,) = (word for word in place.agent_argv() if word.startswith("--mcp-config="))
        assert json.loads(given.partition("=")[2]) == {"mcpServers": servers}


@pytest.mark.parametrize("timeout", ["0", "0.1"])
def test_the_time_to_leave_after_the_result_can_be_set(place: Place, timeout: str) -> None:
    done = place.run("run", "result\nsleep 1", f"--result-timeout={timeout}")

    assert done.returncode == (0 if timeout == "0" else 124), done.stderr


def test_no_partial_messages_come_into_a_pipe(place: Place) -> None:
    place.run("run", "hello")

    assert "--include-partial-messages" not in place.agent_argv()


def test_an_output_that_takes_no_unicode_gets_question_marks(place: Place) -> None:
    done = place.run("run", "grün", env={"PYTHONIOENCODING": "ascii"})

    assert done.returncode == 0, done.stderr
    assert "gr?n" in done.stdout


# What has changed


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[], object]], list[tuple[str, str]] | None]:
    def between(change: Callable[[], object]) -> list[tuple[str, str]] | None:
        before = look.snapshot(tmp_path)
        change()
        files = look.changed(before, look.snapshot(tmp_path))
        return None if files is None else [(file.status, os.fsdecode(file.path)) for file in files]

    return between


Look = Callable[[Callable[[], object]], list[tuple[str, str]] | None]


def test_where_nothing_has_changed_it_is_told_what_was_not_looked_into(place: Place) -> None:
    for name in (".venv", "node_modules"):
        (place.workspace / name).mkdir()

    done = place.run("run", "hello")

    assert "  No file has changed; .venv, node_modules are not looked into.\n" in done.stderr


@pytest.mark.parametrize(("flags", "told"), [(["--records-max-run=1"], True), (["--no-records"], False), ([], False)])
def test_a_transcript_that_is_incomplete_is_told_at_the_end(place: Place, flags: list[str], told: bool) -> None:
    done = place.run("run", "hello", *flags)

    assert done.returncode == 0
    assert ("! Its transcript is incomplete." in done.stderr) is told


@pytest.mark.parametrize(("locale", "shown"), [("C", "Grüße"), ("C.UTF-8", "Grüße")])
def test_a_prompt_is_utf_8_whatever_the_locale_is(place: Place, locale: str, shown: str) -> None:
    no_help = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    done = place.run("run", "edit hello.txt Grüße", env={**no_help, "LC_ALL": locale})

    assert done.returncode == 0, done.stderr
    assert (place.workspace / "hello.txt").read_text("utf-8") == f"{shown}\n"


def test_what_may_surprise_of_the_box_is_told_before(place: Place) -> None:
    done = place.run("run", "hello", "--env=NPM_TOKEN=abc")

    assert "! The value of NPM_TOKEN is taken for no secret" in done.stderr
    assert "abc" not in done.stderr


def test_changes_are_found_below_folders(tmp_path: Path, changed: Look) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "same").write_text("x")
    (tmp_path / "a" / "old").write_text("x")

    def change() -> None:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "new").write_text("x")
        (tmp_path / "a" / "old").write_text("longer")

    assert changed(change) == [("modified", "a/old"), ("added", "b/new")]


def test_a_file_that_was_replaced_by_one_of_the_same_size_and_time_has_changed(tmp_path: Path, changed: Look) -> None:
    file, other = tmp_path / "file", tmp_path.parent / "other"
    file.write_text("x")
    other.write_text("y")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))

    assert changed(lambda: other.rename(file)) == [("modified", "file")]


def test_a_file_whose_time_was_set_back_has_changed(tmp_path: Path, changed: Look) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    before = file.stat()

    def change() -> None:
        file.write_text("y")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert changed(change) == [("modified", "file")]


def test_symlinks_are_not_followed(tmp_path: Path, changed: Look, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (tmp_path / "link").symlink_to(outside)

    assert changed(lambda: (outside / "file").write_text("x")) == []
    assert changed(lambda: (tmp_path / "second").symlink_to(outside)) == [("added", "second")]


def test_repositories_and_caches_are_not_looked_into(tmp_path: Path, changed: Look) -> None:
    for name in (".git", "node_modules", "a/__pycache__"):
        (tmp_path / name).mkdir(parents=True)

    def change() -> None:
        for name in (".git", "node_modules", "a/__pycache__"):
            (tmp_path / name / "file").write_text("x")

    assert changed(change) == []


def test_a_folder_with_too_many_files_is_not_compared(
    tmp_path: Path, changed: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = look.MOST_FILES
    monkeypatch.setattr(look, "MOST_FILES", 3)
    for name in "abcd":
        (tmp_path / name).touch()

    assert looked_at > 10_000
    assert changed(lambda: None) is None


def test_a_very_deep_folder_is_no_error(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)

    assert look.snapshot(tmp_path) == {}

    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_a_folder_that_is_not_there_can_not_be_compared(tmp_path: Path) -> None:
    assert look.snapshot(tmp_path / "none") is None
    assert look.changed(None, {}) is None


# Words for people


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain ünï\tcode\n", "plain ünï\tcode\n"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07", "�]0;title�"),
        ("\x1b[2J\x9b2J", "�[2J�2J"),
        ("a\r\nb\rc", "a\nb�c"),
        ("\u202eabc\u2066\u061c", "�abc��"),
        ("\udcff", "�"),
        ("\x1b\x1b[0m[2J", "�[2J"),
    ],
)
def test_text_is_cleaned(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_a_line_is_one_line_and_short() -> None:
    assert line("a\n  b\tc") == "a b c"
    assert len(line("x" * 10**7)) == 161


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"command": "ls -la", "description": "List"}, "ls -la"),
        ({"file_path": "/workspace/a.py", "old_string": "x"}, "a.py"),
        ({"todos": [1, 2]}, "todos=[1, 2]"),
        ({"command": ["not", "text"]}, "command=['not', 'text']"),
        ({}, ""),
    ],
)
def test_a_tool_call_tells_what_it_is_about(arguments: dict[str, object], told: str) -> None:
    assert tool_call("Tool", arguments) == ("Tool", told)


# What is piped in


def test_what_is_piped_in_is_the_prompt_where_there_is_no_other(place: Place) -> None:
    done = place.run("run", stdin="say this")

    assert done.returncode == 0
    assert "say this" in done.stdout


def test_what_is_piped_in_is_added_to_a_prompt(place: Place) -> None:
    done = place.run("run", "say this", stdin="and that\n")

    assert done.returncode == 0
    assert "say this" in done.stdout
    assert "and that" in done.stdout
    assert "9 bytes from stdin are added to the prompt" in done.stderr


@pytest.mark.parametrize("words", [[], ["-"]])
def test_a_prompt_that_is_piped_and_empty_is_refused(place: Place, words: list[str]) -> None:
    done = place.run("run", *words, stdin=" \n")

    assert done.returncode == 2
    assert "The prompt is empty: nothing came on stdin." in done.stderr


def test_a_pipe_that_stays_silent_holds_nothing_up_and_is_told(place: Place) -> None:
    silent, held = os.pipe()
    try:
        done = subprocess.run(
            [COMMAND, "run", "say this", *place.flags],
            cwd=place.workspace, stdin=silent, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(silent)
        os.close(held)

    assert done.returncode == 0
    assert "say this" in done.stdout
    assert "stdin is a pipe on which nothing comes" in done.stderr


async def test_an_agent_that_has_started_and_says_nothing_is_wondered_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "QUIET", 0.0)
    quiet, talkative = PlainView(), PlainView()
    await talkative.take(parse_message({"type": "system", "subtype": "x"}))
    for shown in (quiet, talkative):
        shown.agent_started()
        await shown.beside()

    assert capsys.readouterr().err == "· started, nothing said yet: network? key?\n"


# Going on


def test_continue_goes_on_with_the_last_session_of_this_workspace_and_agent(place: Place) -> None:
    other = place.folder / "other"
    shutil.copytree(place.workspace, other)
    if os.geteuid() == 0:
        os.chown(other, 1000, 1000)
    sessions = []
    for folder in (place.workspace, other):
        done = place.run("run", "hello", "--agent=bot", f"--workspace={folder}")
        sessions += re.findall(r"--resume=([\w-]+)", done.stderr)

    done = place.run("run", "more", "--agent=bot", "--continue")

    assert len(set(sessions)) == 2
    assert done.returncode == 0, done.stderr
    assert f"--resume={sessions[0]}" in place.agent_argv()


def test_continue_without_a_session_says_where_sessions_are(place: Place) -> None:
    done = place.run("run", "more", "--continue")

    assert done.returncode == 2
    assert "has no session in" in done.stderr
    assert "container-runner sessions list" in done.stderr
