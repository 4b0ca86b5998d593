"""`changes`, `apply`, `branch` and `discard`: what they find, do and print, and what they say to a bad command line."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

from container_runner.records.records import Records, RunRecord
from container_runner.records.summary import RunSummary, Work
from container_runner.workspace.changes import Notes, write_notes
from container_runner.workspace.findings import Finding
from container_runner.workspace.shadow import Shadow
from container_runner.workspace.target import Journal
from tests import carried_engine
from tests.small_engine import Done, call
from tests.workspace.scene import FILES, commit, git, make_folder, ran, write

ONE, TWO = "1" * 32, "2" * 32

Cli = Callable[..., Done]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_folder(tmp_path / "work", FILES)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    return folder


@pytest.fixture
def cli(state: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    """The command, on the test's state folder."""

    return lambda *words: call(capfdbinary, *words, f"--state-dir={state}")


def edit(box: Path) -> None:
    (box / "b").unlink()
    write(box, {"a": FILES["a"] + "nine\n", ".envrc": "evil\n"})
    commit(box, "by the \x1b[31magent\u202e")
    write(box, {"new\x1b]0;x\x07": "x\n"})


@pytest.fixture
def done(work: Path, state: Path) -> Path:
    """A folder that an agent has worked on."""
    anyio.run(ran, work, state, edit, ONE)
    return work


def test_changes_are_told_with_what_to_look_at_and_what_to_type(done: Path, cli: Cli) -> None:
    said = cli("changes")

    sha = git(done, "rev-parse", "HEAD").strip()
    assert said.err == ""
    rows = [row for row in said.out.splitlines() if "by the" not in row]
    assert rows == [
        "· run 111111111111, the last one on a copy",
        "4 files have changed:",
        "  + .envrc  (+1 -0)",
        "  ~ a  (+1 -0)",
        "  - b  (+0 -1)",
        "  + new\ufffd]0;x\ufffd  (+1 -0)",
        "1 commit was made:",
        "Look at these first; apply leaves them out until you name them with --include:",
        "  ! .envrc: it runs when somebody enters the folder",
        "",
        "container-runner changes 111111111111 --diff    shows it",
        "container-runner apply 111111111111             writes it into the folder",
        "container-runner branch 111111111111 NAME       makes a branch of it",
        "container-runner discard 111111111111           forgets it",
    ]
    assert "by the agent\ufffd\n" in said.out
    assert sha not in said.out
    assert "\x1b" not in said.out


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize(
    ("fields", "is_told"),
    [
        ({"outcome": "succeeded"}, True),
        ({"outcome": "failed", "exit_code": 1}, True),
        ({"outcome": "failed"}, False),  # it may have been none that has worked
        ({"outcome": "succeeded", "changes": Work(base="b", result="r")}, False),
        ({"outcome": "succeeded", "workspace": "/"}, False),
    ],
)
def test_a_later_run_on_the_folder_itself_is_told_and_has_nothing_to_fetch(
    fields: dict[str, Any],
    is_told: bool,
    is_kept: bool,
    work: Path,
    state: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_kept:
        anyio.run(ran, work, state, edit, ONE)
    usual = {"run_id": TWO, "agent": "a", "started": dt.datetime.now(dt.UTC), "workspace": str(work)}
    records = [RunRecord(agent="a", name="r", summary=RunSummary(**{**usual, **fields}))]
    monkeypatch.setattr(Records, "runs", lambda *_: records)

    said = cli("changes")

    told = "Run 222222222222 was the last, with the folder mounted: what it did is there, and nothing is to be fetched."
    assert (told in (said.out if is_kept else said.err)) is is_told
    assert said.code == (0 if is_kept else 2)


def test_the_difference_is_cleaned_for_a_terminal(done: Path, cli: Cli) -> None:
    assert "+nine" in cli("changes", "--diff").out
    assert "\x1b" not in cli("changes", "1111", "--diff").out
    assert "4 files changed, 3 insertions(+), 1 deletion(-)" in cli("changes", "--stat").out


def test_changes_are_told_to_programs(done: Path, cli: Cli) -> None:
    told = orjson.loads(cli("changes", "--json").out)

    assert told["run"] == ONE
    assert {file["path"] for file in told["files"]} == {".envrc", "a", "b", "new\x1b]0;x\x07"}
    assert told["findings"] == [{"kind": "tool", "path": ".envrc"}]
    assert "+nine" in orjson.loads(cli("changes", "--json", "--diff").out)["diff"]


def test_an_apply_says_what_it_did_and_what_it_left_out(done: Path, cli: Cli) -> None:
    said = cli("apply")
    assert (said.code, said.out) == (0, "3 files are applied.\n")
    assert said.err.splitlines() == [
        "Look at these first; apply leaves them out until you name them with --include:",
        "  ! .envrc: it runs when somebody enters the folder",
    ]
    assert not (done / "b").exists()
    assert not (done / ".envrc").exists()

    assert cli("apply").out == "Nothing is applied: the folder has the rest.\n"
    assert cli("apply", "--include=.envrc").out == "1 file is applied.\n"
    assert (done / ".envrc").read_text() == "evil\n"
    assert orjson.loads(cli("apply", "--include", "all", "--json").out) == {"paths": [], "left_out": []}


def test_a_conflict_is_told_by_name_and_has_a_code_of_its_own(done: Path, cli: Cli) -> None:
    (done / "b").write_text("the user's\n")

    said = cli("apply")

    assert (said.code, said.out) == (3, "")
    assert said.err.splitlines()[1:] == [
        "  'b'",
        "Take the work as a branch with `container-runner branch NAME`, and merge that as you are used to.",
    ]
    assert (done / "a").read_text() == FILES["a"]


def test_a_branch_is_made_of_the_last_run_or_of_one_that_is_named(done: Path, state: Path, cli: Cli) -> None:
    anyio.run(ran, done, state, lambda box: write(box, {"two": "2\n"}), TWO)

    assert cli("branch", "last").out.startswith("The branch last is at ")
    first = cli("branch", "111", "first")
    assert (first.code, first.err.splitlines()[0]) == (0, "Look at these before you check it out:")
    assert git(done, "diff", "--name-only", "main", "last") == "two\n"
    assert git(done, "diff", "--name-only", "main", "first").splitlines()[:3] == [".envrc", "a", "b"]
    assert cli("branch").code == 2
    said = cli("branch", "a b")
    assert (said.code, said.err.startswith("container-runner: NAME must be ")) == (2, True)
    assert cli("branch", "main").code == 3


def test_what_is_discarded_is_gone(done: Path, cli: Cli) -> None:
    assert cli("discard").out == "The work of run 111111111111 is forgotten.\n"

    said = cli("changes")
    assert said.code == 2
    assert "RUN is missing" in said.err
    assert cli("changes", "--list").err == "There are no runs.\n"


def test_runs_are_listed_and_found_by_their_first_digits(done: Path, state: Path, cli: Cli) -> None:
    anyio.run(ran, done, state, lambda box: write(box, {"two": "2\n"}), TWO)
    anyio.run(ran, done, state, lambda box: write(box, {"two": "2\n"}), "12" * 16)

    assert [run["run"] for run in orjson.loads(cli("changes", "--list", "--json").out)][:1] == [ONE]
    assert cli("changes", "--list").out.splitlines()[0].split() == ["RUN", "STARTED"]
    assert "+ two" in cli("changes", "2").out
    assert "2 begin with this" in cli("changes", "1").err
    said = cli("changes", "7")
    assert (said.code, "the id of a run" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["changes", "--workspace=/nowhere"], "--workspace"),
        (["apply", "--include=nothing"], "--include must be "),
        (["apply", "--include"], "--include"),
        (["changes", "x", "y"], 'Nothing takes the word "y"'),
        (["discard", "../.."], "'../..'"),
    ],
)
def test_what_is_wrong_is_said(done: Path, cli: Cli, words: list[str], told: str) -> None:
    said = cli(*words)

    assert (said.code, said.out) == (2, "")
    assert told in said.err


def test_an_apply_that_was_cut_off_is_undone_by_the_next_command(done: Path, state: Path, cli: Cli) -> None:
    (carried,) = (state / "carried").iterdir()
    (done / f".container-runner-{ONE}").mkdir()
    (done / f".container-runner-{ONE}" / "o0").write_text("old\n")
    (done / "b").rename(done / f".container-runner-{ONE}" / "o1")
    journal = {"run": ONE, "steps": [["take", "b", 1, True, [0, 0, 0, 0]]]}
    (carried / "apply.json").write_bytes(orjson.dumps(journal))
    assert Journal.read(carried) is not None

    said = cli("changes")

    assert said.err == "The apply of run 111111111111 was cut off. It is undone.\n"
    assert (done / "b").read_text() == FILES["b"]
    assert {path.name for path in done.iterdir()} == {".git", *(name.partition("/")[0] for name in FILES)}


def test_what_was_left_in_the_box_is_told_apart(done: Path, state: Path, cli: Cli) -> None:
    async def note() -> None:
        told = (Finding("socket", b"agent.sock"), Finding("too large", b"huge"), Finding("setuid", b"a"))
        await write_notes(await Shadow.open(done, state), ONE, Notes(findings=told))

    anyio.run(note)

    assert cli("changes").out.splitlines()[8:15] == [
        "Look at these first; apply leaves them out until you name them with --include:",
        "  ! .envrc: it runs when somebody enters the folder",
        "  ! a: it was setuid or setgid, and is not any more",
        "These were left in the box:",
        "  ! agent.sock: it is a socket",
        "  ! huge: it is too large",
        "",
    ]
    assert "agent.sock" not in cli("apply").err
    assert (done / "a").read_text() == FILES["a"]


# At the end of a run


Agent = Callable[..., Done]


@pytest.fixture
def agent(work: Path, tmp_path: Path, cli: Cli) -> Agent:
    """Runs a script as the agent on a carried workspace, on an engine that is played."""
    engine = carried_engine.write(tmp_path / "engine")
    work.chmod(0o777)

    def run(script: str, *words: str) -> Done:
        box = ("--carried", "--carry=stream", "--image=i", f"--engine={engine}", "--credentials=none", "--command=sh")
        return cli("run", script, *box, *words)

    return run


def test_a_run_leaves_the_folder_as_it_was_and_says_what_can_be_done(work: Path, agent: Agent) -> None:
    done = agent("echo more >>b")

    assert done.code == 0, done.err
    assert (work / "b").read_text() == FILES["b"]
    assert "~ b  (+1 -0)" in done.err
    assert "writes it into the folder" in done.err


def test_of_an_agent_that_never_began_only_what_has_changed_is_told(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "No file has changed." in agent("exit 7").err
    monkeypatch.setattr("container_runner.cli.run._has_begun", lambda _: False)

    assert agent("exit 7").err == ""
    assert "~ b  (+1 -0)" in agent("echo more >>b; exit 7").err


@pytest.mark.parametrize(
    ("how", "script", "code", "is_applied"),
    [
        ("clean", "echo more >>b", 0, True),
        ("clean", "echo more >>b; echo x >.envrc", 0, False),
        ("clean", "echo more >>b; exit 7", 1, False),
        ("always", "echo more >>b; echo x >.envrc", 0, True),
        ("always", "echo more >>b; exit 7", 1, True),
        ("clean", "echo more >>b; echo mine >{work}/b", 3, False),
    ],
)
def test_a_run_applies_its_work_if_it_is_asked_to(
    work: Path, agent: Agent, how: str, script: str, code: int, is_applied: bool
) -> None:
    done = agent(script.format(work=work), f"--apply={how}")

    assert done.code == code, done.err
    assert ((work / "b").read_text() == "b\nmore\n") is is_applied
    assert (work / ".envrc").exists() is (is_applied and ".envrc" in script)
    assert ("It is applied." in done.err) is is_applied
    assert ("writes it into the folder" in done.err) is not is_applied
    assert ("Nothing was applied." in done.err) is (code == 3)


@pytest.mark.parametrize("how", ["never", "clean"])
def test_a_program_is_told_of_the_work_by_the_last_line(work: Path, agent: Agent, cli: Cli, how: str) -> None:
    done = agent("echo more >>b", "--json", f"--apply={how}")

    last = orjson.loads(done.out.splitlines()[-1])
    assert (last.pop("type"), last.pop("applied")) == ("changes", None if how == "never" else ["b"])
    assert last == orjson.loads(cli("changes", "--json").out)
    assert [file["path"] for file in last["files"]] == ["b"]


@pytest.mark.parametrize(("start", "wanted"), [("", 0), ("--from=RUN", 1)])
def test_the_commands_have_what_lays_the_work_of_an_earlier_run_over_the_folder(
    work: Path, agent: Agent, cli: Cli, start: str, wanted: int
) -> None:
    """With an overlay; a stream's is one exec, whatever the box begins with."""
    if os.geteuid() == 0:
        os.chown(work, 1000, 1000)
    agent("echo more >>b")
    run = orjson.loads(cli("changes", "--json").out)["run"]

    words = ("--image=i", "--engine=docker", "--carried", "--carry=overlay", "--stable", "--json")
    commands = orjson.loads(cli("argv", "x", *words, *filter(None, [start.replace("RUN", run)])).out)

    assert sum("PATCH" in command for command in commands) == wanted
    assert any("OUT" in command for command in commands)


def test_a_session_that_goes_on_from_its_work_is_told_so(
    work: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{carried_engine.write_claude(tmp_path).parent}:{os.environ['PATH']}")
    work.chmod(0o777)
    box = ("--carried", "--carry=stream", "--image=i", f"--engine={carried_engine.write(tmp_path / 'engine')}")
    words = (*box, "--credentials=none")
    first = cli("run", "echo more >>b", *words)
    assert (first.code, "goes on from" in first.err) == (0, False), first.err
    assert "--resume=one PROMPT" in first.err

    second = cli("run", "cat b >c", "--continue", *words)

    assert second.code == 0, second.err
    (told,) = (line for line in second.err.splitlines() if "goes on from" in line)
    run = told.partition("of run ")[2][:12]
    assert f"container-runner changes {run} --diff" in first.err
    assert "+ c  (+2 -0)" in second.err
    assert "--continue" not in second.err.partition("To go on with the session:")[2]
    again = cli("run", "cat b >c", "--from=folder", "--resume=one", *words)
    assert "+ c  (+1 -0)" in again.err
    assert "goes on from" not in again.err


@pytest.fixture
def plain_agent(work: Path, tmp_path: Path, cli: Cli) -> Agent:
    """The same, but nobody says how the folder gets into the box. This engine refuses an overlay."""
    engine = carried_engine.write(tmp_path / "engine")
    if os.geteuid() == 0:
        for path in (work, *work.rglob("*")):
            os.chown(path, 1000, 1000, follow_symlinks=False)
    box = ("--image=i", f"--engine={engine}", "--credentials=none", "--command=sh")
    return lambda script, *words: cli("run", script, *box, *words)


@pytest.mark.parametrize(
    ("script", "code", "is_applied"),
    [
        ("echo more >>b; echo 1 >x.log", 0, True),
        ("echo x >.envrc; echo more >>b", 0, False),
        ("echo more >>b; exit 7", 1, False),
    ],
)
def test_by_default_clean_work_is_applied(
    work: Path, plain_agent: Agent, script: str, code: int, is_applied: bool
) -> None:
    (work / ".git/info/exclude").write_text("*.log\n")

    done = plain_agent(script)

    assert done.code == code, done.err
    assert ((work / "b").read_text() == "b\nmore\n") is is_applied
    assert not (work / ".envrc").exists()
    assert not (work / "x.log").exists()
    assert ("It is applied." in done.err) is is_applied
    assert ("1 new file that git ignores stayed in the box" in done.err) is is_applied
    assert ("writes it into the folder" in done.err) is not is_applied


def test_by_default_a_program_is_told_too(work: Path, plain_agent: Agent) -> None:
    assert "writes it into the folder" in plain_agent("echo x >.envrc", "--json").err


def test_a_mounted_folder_has_nothing_to_apply(work: Path, cli: Cli) -> None:
    done = cli("run", "hello", "--image=i", "--rw", "--apply=clean")

    assert done.code == 2
    assert "--carried beside it" in done.err
