"""`logs` and `sessions`: what they find, how they print it, and that no session leads them astray."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from rich.cells import cell_len
from rich.console import Console

from container_runner.agents import ClaudeRuntime
from container_runner.cli.logs import columns
from container_runner.cli.show import print_rich
from container_runner.config.container import ContainerConfig
from container_runner.config.limits import RecordLimits
from container_runner.errors import ConfigError
from container_runner.options import Agent, ExecuteOptions
from container_runner.records.recorder import Recorder
from container_runner.records.records import Records
from container_runner.records.sessions import Sessions
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import parse_line
from container_runner.testing import FakeEngine
from tests.hostile import PAYLOADS, everywhere
from tests.small_engine import Done, call

pytestmark = pytest.mark.usefixtures("mounted")

SESSION = "0b7e3a52-1111-4000-8000-000000000000"
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.chdir(tmp_path)
    time.tzset()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


Cli = Callable[..., Done]


@pytest.fixture
def cli(state: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    """The command, on the test's state folder."""

    return lambda *words: call(capfdbinary, *words, f"--state-dir={state}")


def answer(text: str, *, session: str = SESSION, cost: float = 0.25) -> list[dict[str, Any]]:
    """What an agent says that edits a file and then answers."""
    use = {"type": "tool_use", "id": "t", "name": "Edit",
           "input": {"file_path": "/workspace/a.py", "old_string": "x = 1", "new_string": "x = 2"}}  # fmt: skip
    gave = {"type": "tool_result", "tool_use_id": "t", "content": "updated"}
    return [
        {"type": "system", "subtype": "init", "session_id": session, "model": "claude-x"},
        {"type": "assistant", "message": {"content": [use]}, "session_id": session},
        {"type": "user", "message": {"content": [gave]}, "session_id": session,
         "tool_use_result": {"structuredPatch": []}},
        {"type": "assistant", "message": {"content": [{"type": "text", "text": text}]}, "session_id": session},
        {"type": "result", "subtype": "success", "is_error": False, "num_turns": 2, "total_cost_usd": cost,
         "session_id": session, "usage": {"input_tokens": 3, "output_tokens": 5}},
    ]  # fmt: skip


def run_agent(
    fake_engine: FakeEngine,
    state: Path,
    prompt: str,
    messages: list[dict[str, Any]],
    agent: str = "bot",
    *,
    workspace: Path | None = None,
    **how: Any,
) -> None:
    fake_engine.messages(messages, **how)
    runner = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="my/claude"), state)
    options = ExecuteOptions(prompt=prompt, agent=Agent(name=agent, workspace=workspace))

    async def drain() -> None:
        async for _ in runner.execute(options):
            pass

    anyio.run(drain)


def record(state: Path, lines: list[bytes], *, agent: str = "bot", finish: bool = True) -> Recorder:
    """A run that said *lines*."""
    config = ContainerConfig(image="my/claude", engine="docker")
    options = ExecuteOptions(prompt="Hello", agent=Agent(name=agent))
    plan = ContainerRunner(ClaudeRuntime(), config, state).plan(options)
    recorder = Recorder.start(plan, options, RecordLimits())
    messages = [message for message in map(parse_line, lines) if message is not None]
    recorder.record([*lines], [*messages])
    if finish:
        recorder.finish(None)
    return recorder


def claudes_file(state: Path, name: str = SESSION, agent: str = "bot") -> Path:
    """Where claude keeps a session."""
    folder = state / "sessions" / agent / "projects" / "-workspace"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.jsonl"


CLAUDES_LINES = [
    {"type": "queue-operation", "operation": "enqueue", "content": "Say hi"},
    {"type": "user", "message": {"role": "user", "content": "Say hi"}, "timestamp": "2026-11-23T18:00:00.000Z"},
    {"type": "user", "isMeta": True, "message": {"role": "user", "content": "META"}},
    {"type": "attachment", "attachment": {}},
    {"type": "assistant", "message": {"content": [{"type": "text", "text": "Hi there."}]},
     "timestamp": "2026-11-23T18:00:01.000Z"},
]  # fmt: skip


def write_lines(path: Path, lines: list[Any]) -> None:
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))


# logs


def test_logs_show_the_last_run_of_an_agent(fake_engine: FakeEngine, state: Path, cli: Cli) -> None:
    run_agent(fake_engine, state, "first\nprompt", answer("one"))
    run_agent(fake_engine, state, "second", answer("two"))
    run_agent(fake_engine, state, "other's", answer("three"), agent="other")

    done = cli("logs", "--agent=bot")

    run_id = Records(state).runs("bot")[-1].run_id
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith(f"· run {run_id[:12]} of bot, ")
    assert lines[1:5] == ["> second", f"· session {SESSION}, model claude-x", "● Edit a.py", "  - x = 1"]
    assert lines[5:7] == ["  + x = 2", "two"]
    assert re.fullmatch(
        rf"✓ succeeded, [\d.]+ s, 2 turns, 8 tokens, \$0\.2500, resume with --resume={SESSION}", lines[7]
    )


def test_logs_show_the_paths_of_this_machine(fake_engine: FakeEngine, state: Path, cli: Cli, open_folder: Path) -> None:
    edit = {"type": "tool_use", "id": "t", "name": "Edit", "input": {"file_path": "/workspace/a.py"}}
    said = [{"type": "assistant", "message": {"content": [edit]}}]
    run_agent(fake_engine, state, "go", said, workspace=open_folder)

    assert f"● Edit {open_folder}/a.py" in cli("logs", "--agent=bot").out


def test_logs_of_a_run_that_is_named_need_no_agent(fake_engine: FakeEngine, state: Path, cli: Cli) -> None:
    run_agent(fake_engine, state, "first", answer("one"), agent="elsewhere")
    (run,) = Records(state).runs()

    assert "> first" in cli("logs", run.run_id[:10]).out


def test_logs_of_a_failure_end_with_what_to_do(fake_engine: FakeEngine, state: Path, cli: Cli) -> None:
    run_agent(fake_engine, state, "go", [{"type": "system"}], exit_code=7, stderr="no luck\n")

    lines = cli("logs", "--agent=bot").out.splitlines()

    assert lines[-3:] == [
        "✗ claude exited with code 7: no luck.",
        "no luck",
        "  Read what the agent said, above or by `container-runner logs`.",
    ]


def test_logs_as_json_are_the_transcript_itself(fake_engine: FakeEngine, state: Path, cli: Cli) -> None:
    run_agent(fake_engine, state, "go", answer("one"))
    (path,) = (state / "runs" / "bot").glob("*.jsonl")

    assert cli("logs", "--agent=bot", "--json").out == path.read_text()


def test_runs_are_listed(fake_engine: FakeEngine, state: Path, cli: Cli) -> None:
    run_agent(fake_engine, state, "first\nline", answer("one"))
    run_agent(fake_engine, state, "second", [], exit_code=1)
    run_agent(fake_engine, state, "third", answer("x"), agent="other")

    head, first, second = cli("logs", "--list", "--agent=bot").out.splitlines()
    everybody = json.loads(cli("logs", "--list", "--all", "--json").out)

    assert head.split() == ["RUN", "STARTED", "OUTCOME", "DURATION", "TURNS", "COST", "PROMPT"]
    assert re.fullmatch(r"[0-9a-f]{12}  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  succeeded .* \$0\.2500  first line", first)
    assert "agent_failed" in second or "incomplete" in second
    assert [(run["agent"], run["prompt"]) for run in everybody] == [
        ("bot", "first\nline"), ("bot", "second"), ("other", "third"),
    ]  # fmt: skip


def test_columns_are_as_wide_as_a_terminal_shows_them() -> None:
    head, wide, narrow = columns([["FOLDER", "PROMPT"], ["/home/ユーザー/仕事", "x"], ["/home/me", "y"]]).split("\n")

    shown = cell_len(wide.removesuffix("x"))
    assert [cell_len(line[:-1]) for line in (wide, narrow)] == [shown, shown]
    assert head.index("PROMPT") == narrow.index("y") == shown


def test_where_there_is_nothing_to_list_it_says_so(state: Path, cli: Cli) -> None:
    assert cli("logs", "--list", "--agent=bot") == Done(0, "", "There are no runs of bot; --all lists the others.\n")
    assert cli("logs", "--list", "--all").err == "There are no runs.\n"
    assert json.loads(cli("logs", "--list", "--json", "--agent=bot").out) == []
    assert cli("sessions", "list", "--all").err == "There are no sessions.\n"


@pytest.mark.parametrize(
    "words",
    [
        ["logs", "--agent=bot"],
        ["logs", "ffff"],
        ["logs", "--agent=../bot"],
        ["sessions", "show", "--agent=bot"],
        ["sessions", "show", "nope"],
        ["sessions", "show", "../../etc/passwd"],
        ["sessions", "export", "nope", "--agent=."],
        ["sessions", "list", "--agent=a/b"],
    ],
)
def test_what_is_not_there_is_refused_with_a_way_to_find_out(words: list[str], state: Path, cli: Cli) -> None:
    done = cli(*words)

    assert (done.code, done.out) == (2, "")
    assert "--list" in done.err or "list --all" in done.err


def test_the_agent_of_the_current_folder_is_meant(
    fake_engine: FakeEngine, state: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from container_runner.cli.flags import _agent_name

    (tmp_path / "project").mkdir()
    run_agent(fake_engine, state, "go", answer("one"), agent=_agent_name(tmp_path / "project"))

    assert cli("logs").code == 2
    assert "> go" in cli("logs", "-w", str(tmp_path / "project")).out
    monkeypatch.chdir(tmp_path / "project")
    assert "> go" in cli("logs").out


def test_a_run_that_goes_on_is_followed_to_its_end(state: Path, cli: Cli) -> None:
    line = b'{"type":"assistant","message":{"content":[{"type":"text","text":"%s"}]}}'
    recorder = record(state, [line % b"before"], finish=False)
    assert "it still runs" in cli("logs", "--agent=bot").out

    def go_on() -> None:
        time.sleep(0.3)
        said = line % b"after"
        message = parse_line(said)
        assert message is not None
        recorder.record([said], [message])
        time.sleep(0.3)
        recorder.finish(None)

    thread = threading.Thread(target=go_on)
    thread.start()
    done = cli("logs", "--follow", "--agent=bot")
    thread.join()

    assert [text for text in done.out.splitlines() if text in ("before", "after")] == ["before", "after"]
    assert done.out.splitlines()[-1].startswith("✓ succeeded")


def test_a_run_that_was_cut_off_is_shown_up_to_there(state: Path, cli: Cli) -> None:
    record(state, [b'{"type":"assistant","message":{"content":"half"}}'])
    (path,) = (state / "runs" / "bot").glob("*.jsonl")
    path.with_suffix(".json").unlink()
    path.write_bytes(path.read_bytes() + b'{"time":"2026')

    done = cli("logs", "--agent=bot")

    assert "half" in done.out
    assert done.out.splitlines()[-1].startswith("✗ interrupted")
    assert cli("logs", "--agent=bot", "--json").out.endswith("}\n")


@pytest.mark.parametrize("payload", PAYLOADS[-12:], ids=range(12))
def test_no_transcript_reaches_the_terminals_controls(state: Path, cli: Cli, payload: str) -> None:
    record(state, [b'{"type":"system","session_id":"s-1"}'])
    (path,) = (state / "runs" / "bot").glob("*.jsonl")
    path.write_bytes(path.read_bytes() + b"".join(line + b"\n" for line in everywhere(payload)))
    console = Console(width=100, force_terminal=True, color_system="truecolor", record=True, file=io.StringIO())
    sessions = Sessions(state)
    print_rich(sessions.parts(sessions.find("s-1")), console)

    shown = [
        cli("logs", "--agent=bot").out,
        cli("logs", "--list", "--agent=bot").out,
        cli("sessions", "show", "s-1").out,
        cli("sessions", "export", "s-1", "--format=markdown").out,
        cli("sessions", "list", "--agent=bot").out,
        console.export_text(),
    ]

    assert not any(CONTROLS.search(text) for text in shown)


# sessions


def test_sessions_are_listed_with_their_runs(fake_engine: FakeEngine, state: Path, cli: Cli) -> None:
    run_agent(fake_engine, state, "first", answer("one"))
    run_agent(fake_engine, state, "again", answer("two", cost=0.5))
    write_lines(claudes_file(state, "11111111-0000-4000-8000-000000000000"), CLAUDES_LINES)
    os.utime(claudes_file(state, "11111111-0000-4000-8000-000000000000"), (0, 0))

    head, old, new = cli("sessions", "list", "--agent=bot").out.splitlines()
    found = json.loads(cli("sessions", "list", "--agent=bot", "--json").out)

    assert head.split() == ["SESSION", "USED", "RUNS", "TURNS", "COST", "PROMPT"]
    assert old.split() == ["11111111-0000-4000-8000-000000000000", "1970-01-01", "00:00:00", "Say", "hi"]
    assert new.startswith(SESSION)
    assert new.split()[-4:] == ["2", "4", "$0.7500", "first"]
    assert [(session["session_id"], session["can_resume"], len(session["runs"])) for session in found] == [
        ("11111111-0000-4000-8000-000000000000", True, 0), (SESSION, False, 2),
    ]  # fmt: skip


def test_sessions_are_those_of_a_folder_unless_all_are_asked_for(
    fake_engine: FakeEngine, state: Path, cli: Cli, tmp_path: Path
) -> None:
    ids = {}
    for number, name in enumerate(("one", "two")):
        (folder := tmp_path / name).mkdir()
        if os.geteuid() == 0:
            os.chown(folder, 1000, 1000)
        ids[name] = f"{number}b7e3a52-1111-4000-8000-000000000000"
        run_agent(fake_engine, state, name, answer("done", session=ids[name]), workspace=folder)

    def listed(*flags: str) -> list[str]:
        return [one["session_id"] for one in json.loads(cli("sessions", "list", "--json", *flags).out)]

    assert listed("--agent=bot", f"--workspace={tmp_path / 'one'}") == [ids["one"]]
    assert listed("--agent=bot", "-w", str(tmp_path / "two")) == [ids["two"]]
    assert listed("--all") == [*ids.values()]
    assert str(tmp_path / "two")[:40] in cli("sessions", "list", "--all").out
    assert "--all lists the others" in cli("sessions", "list", "--agent=bot").err


def test_a_session_is_shown_plainly_when_piped(fake_engine: FakeEngine, state: Path, cli: Cli) -> None:
    run_agent(fake_engine, state, "first", answer("one\n\ntwo " + "x" * 300))

    done = cli("sessions", "show", SESSION[:4])

    lines = done.out.splitlines()
    assert re.match(r"· run [0-9a-f]{12} of bot, \S+ \S+, succeeded, ", lines[0])
    assert lines[2] == "> first"
    assert re.fullmatch(r"● Edit /workspace/a.py  \([\d.]+ s\)", lines[4])
    assert lines[5:7] == ["  - x = 1", "  + x = 2"]
    assert lines[8:11] == ["one", "", "two " + "x" * 300]
    assert lines[12] == "✓ succeeded, 2 turns, $0.2500"
    assert "\x1b" not in done.out


def test_a_session_without_records_is_read_from_claudes_file(state: Path, cli: Cli) -> None:
    write_lines(claudes_file(state), CLAUDES_LINES)

    out = cli("sessions", "show", SESSION).out

    assert "> Say hi" in out
    assert "Hi there." in out
    assert "META" not in out
    assert cli("sessions", "export", SESSION).out == claudes_file(state).read_text()


def test_all_runs_of_a_session_are_shown(fake_engine: FakeEngine, state: Path, cli: Cli) -> None:
    run_agent(fake_engine, state, "first", answer("one"))
    run_agent(fake_engine, state, "again", answer("two"))

    out = cli("sessions", "show", "--agent=bot").out

    assert re.findall("^> .*|^one|^two", out, re.MULTILINE) == ["> first", "one", "> again", "two"]


def test_a_session_as_json(fake_engine: FakeEngine, state: Path, cli: Cli) -> None:
    run_agent(fake_engine, state, "first", answer("one"))

    shown = json.loads(cli("sessions", "show", SESSION, "--json").out)

    (part,) = shown["parts"]
    assert [item["type"] for item in part["items"]] == ["prompt", "tool_call", "text", "done"]
    assert part["items"][1]["changes"] == [{"start": None, "lines": ["-x = 1", "+x = 2"]}]
    assert part["summary"]["session_id"] == shown["session_id"] == SESSION


def test_a_session_as_a_page(fake_engine: FakeEngine, state: Path, cli: Cli, tmp_path: Path) -> None:
    run_agent(fake_engine, state, "make it <b>bold</b>", answer("one"))

    done = cli("sessions", "show", SESSION, f"--html={tmp_path / 'page.html'}")

    page = (tmp_path / "page.html").read_text()
    assert (done.code, done.out, done.err) == (0, "", f"Wrote {tmp_path / 'page.html'}\n")
    assert page.startswith("<!doctype html>")
    assert "make it &lt;b&gt;bold&lt;/b&gt;" in page
    assert cli("sessions", "show", SESSION, "--html=-").out == page
    assert cli("sessions", "show", SESSION, f"--html={tmp_path}").code == 2


def test_a_session_is_exported(fake_engine: FakeEngine, state: Path, cli: Cli, tmp_path: Path) -> None:
    run_agent(fake_engine, state, "use ```` ticks", answer("It is **one**."))
    (path,) = (state / "runs" / "bot").glob("*.jsonl")

    assert cli("sessions", "export", SESSION).out == path.read_text()
    cli("sessions", "export", SESSION, "-o", str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text() == path.read_text()
    text = cli("sessions", "export", SESSION, "--format=markdown").out
    assert "`````\nuse ```` ticks\n`````" in text
    assert "It is **one**." in text
    assert "```diff\n-x = 1\n+x = 2\n```" in text
    told = orjson.loads(cli("sessions", "export", SESSION, "--json").out)
    assert told == {"session_id": SESSION, "agent": "bot", "format": "jsonl", "text": path.read_text()}
    told = orjson.loads(cli("sessions", "export", SESSION, "--json", "-o", str(tmp_path / "again.jsonl")).out)
    assert told["file"] == str(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == path.read_text()


# Hostile sessions


@pytest.mark.parametrize("place", ["file", "-workspace", "projects", "bot", "sessions"])
def test_a_symlink_in_the_agents_folder_leads_nowhere(state: Path, cli: Cli, tmp_path: Path, place: str) -> None:
    target = claudes_file(tmp_path / "secret")
    write_lines(target, CLAUDES_LINES)
    link = claudes_file(state)
    levels = {"file": 0, "-workspace": 1, "projects": 2, "bot": 3, "sessions": 4}[place]
    for _ in range(levels):
        link, target = link.parent, target.parent
        link.rmdir()
    link.symlink_to(target)

    assert cli("sessions", "list", "--all").out == ""
    assert cli("sessions", "show", SESSION).code == 2
    assert cli("sessions", "show", SESSION, "--agent=bot").code == 2


def test_a_session_that_becomes_a_symlink_is_not_followed(state: Path, tmp_path: Path) -> None:
    write_lines(claudes_file(state), CLAUDES_LINES)
    sessions = Sessions(state)
    found = sessions.find(SESSION)
    claudes_file(state).unlink()
    claudes_file(state).symlink_to("/etc/passwd")

    with pytest.raises(Exception, match="can not be read"):
        list(sessions.lines(found))


def test_a_pipe_in_the_place_of_a_session_does_not_make_us_wait(state: Path, cli: Cli) -> None:
    os.mkfifo(claudes_file(state))

    assert cli("sessions", "list", "--all").out == ""
    assert cli("sessions", "show", SESSION).code == 2


@pytest.mark.parametrize("name", ["..", "-rf", "a b", "a\nb", "é", "x" * 200, ""])
def test_a_file_whose_name_is_no_id_is_no_session(state: Path, name: str, cli: Cli) -> None:
    write_lines(claudes_file(state, name), CLAUDES_LINES)

    assert cli("sessions", "list", "--all").out == ""


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n\n", b"\xff\x00\n", b"[]\n3\nnull\n", b'{"type":"user"}\n', b'{"type":"user","message":7}\n',
        b'{"type":"user","message":{"content":[3,{"text":7}]}}\n', b'{"type":"assistant","message":{"content":8}}\n',
        b'{"type":"assistant","timestamp":"99999-99-99"}\n', b'{"type":"cost-state","totalCostUSD":"much"}\n',
        b'{"type":"assistant"', b"{" * 100_000 + b"\n",
    ],
)  # fmt: skip
def test_a_session_of_any_content_can_be_shown(state: Path, data: bytes, cli: Cli) -> None:
    claudes_file(state).write_bytes(data)

    for words in (["list", "--all"], ["show", SESSION], ["show", SESSION, "--html=-"], ["show", SESSION, "--json"]):
        assert cli("sessions", *words).code == 0


def test_no_more_sessions_are_looked_at_than_anybody_has(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container_runner.records.sessions._MOST_FILES", 10)
    for number in range(30):
        claudes_file(state, f"{number:08}").touch()

    assert len(Sessions(state).of("bot")) == 10


def test_no_more_of_a_session_is_read_than_anybody_wrote(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container_runner.records.sessions._FILE_LIMIT", 1024)
    write_lines(claudes_file(state), CLAUDES_LINES * 10_000)
    sessions = Sessions(state)

    assert len(list(sessions.lines(sessions.find(SESSION)))) < 5000


def test_an_agents_name_is_checked_before_it_is_a_path(state: Path) -> None:
    for name in ("..", "a/b", "", "."):
        with pytest.raises(ConfigError):
            Sessions(state).of(name)


def test_the_commands_start_without_what_they_do_not_need() -> None:
    code = "import sys, container_runner.cli.logs, container_runner.cli.sessions; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {"rich.markdown", "markdown_it", "container_runner.runner", "psutil", "anyio", "difflib"} & set(loaded)
