"""`container-runner batch` as a script uses it, and as a person at a terminal sees it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from container_runner.cli.view import NOTHING_LEFT
from tests.cli.test_live import HIDE_CURSOR, SHOW_CURSOR, agent_is_gone
from tests.cli.test_run import COMMAND, Place, place
from tests.terminal import Terminal

__all__ = ["place"]

GOOD = {"id": "good", "prompt": "edit made.txt hello"}
BAD = {"id": "bad", "prompt": "fail It did not work."}


def write(place: Place, *jobs: Any, name: str = "jobs.jsonl") -> Path:
    file = place.folder / name
    file.write_text("".join(f"{json.dumps(job)}\n" for job in jobs))
    return file


def results(file: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in file.with_name(f"{file.stem}.results.jsonl").read_text().splitlines()]


def runs(place: Place) -> int:
    """How many agents were started."""
    calls = place.folder / "engine" / "calls"
    return calls.read_text().count('["run", "--rm"') if calls.exists() else 0


@pytest.mark.parametrize(("name", "text"), [("jobs.jsonl", ""), ("jobs.jsonl", "\n \n"), ("jobs.toml", "[defaults]\n")])
def test_a_file_without_jobs_is_an_error(name: str, text: str, place: Place) -> None:
    (place.folder / name).write_text(text)

    done = place.run("batch", str(place.folder / name))

    assert done.returncode == 2
    assert "at least one job: this one has none" in done.stderr
    assert not (place.folder / "jobs.results.jsonl").exists()


def test_what_a_person_should_know_of_a_workspace_is_told_once(place: Place) -> None:
    (place.workspace / ".git").mkdir()
    for name in ("one", "two"):
        (place.workspace / name).mkdir()
        if os.geteuid() == 0:
            os.chown(place.workspace / name, 1000, 1000)
    jobs = [{"prompt": "hello", "workspace": str(place.workspace / name)} for name in ("one", "one", "two")]

    done = place.run("batch", str(write(place, *jobs)))

    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("! ")]
    assert [line.partition(": ")[0] for line in told] == [f"! {place.workspace}/{name}" for name in ("one", "two")]
    assert all(f"--workspace={place.workspace} gives all of it." in line for line in told)


def test_a_job_is_set_up_and_checked_in_its_folder(place: Place) -> None:
    checked = {"prompt": "edit made.txt hello", "setup": "echo set up >ready.txt", "check": "cat ready.txt; grep bye *"}

    done = place.run("batch", str(file := write(place, {"id": "a", **checked}, {"id": "b", **checked, "check": "ls"})))

    assert done.returncode == 1
    assert "✗ a: The check failed with code 1." in done.stderr
    (bad, good) = sorted(results(file), key=lambda row: str(row["id"]))
    assert (bad["kind"], bad["stderr"], good["kind"]) == ("check_failed", "set up\n", None)


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--memory=much", "--memory must be"),
        ("--json-schema=[]", "--json-schema must be"),
        ("--timeout=soon", "--timeout must be"),
        ("--retries=200", "--retries must be"),
        ("--total-budget-usd=0", "--total-budget-usd must be"),
        ("--env=NAME", "--env must be"),
    ],
)
def test_a_flag_that_is_wrong_is_called_so_and_no_job_is(flag: str, told: str, place: Place) -> None:
    done = place.run("batch", str(write(place, GOOD)), flag)

    assert done.returncode == 2
    assert told in done.stderr
    assert "jobs.jsonl" not in done.stderr


def test_a_file_of_ones_own_that_is_wrong_is_called_so(place: Place) -> None:
    (own := place.folder / "config.toml").write_text("[defaults]\nmemory = 'much'\n")

    done = place.run("batch", str(write(place, GOOD)), f"--config={own}")

    assert f"{own}:2: memory must be" in done.stderr
    assert "jobs.jsonl" not in done.stderr


def test_a_list_of_jobs_is_told_how_it_becomes_lines(place: Place) -> None:
    (file := place.folder / "jobs.json").write_text(json.dumps([GOOD, BAD]))

    done = place.run("batch", str(file))

    assert done.returncode == 2
    assert f"{file}:1: line must be one job a line, and no list of them; `jq -c '.[]' FILE`" in done.stderr


def test_what_keeps_a_job_waiting_is_told(place: Place) -> None:
    retry = {"type": "system", "subtype": "api_retry", "attempt": 1, "max_retries": 10, "retry_delay_ms": 500}
    retry |= {"error_status": 529, "error": "overloaded"}

    done = place.run("batch", str(write(place, {"id": "a", "prompt": f"raw {json.dumps(retry)}"})))

    assert "· a: The API says 529 (overloaded): try 1 of 10" in done.stderr


def test_each_job_is_told_and_kept(place: Place) -> None:
    file = write(place, GOOD, BAD, "only a prompt")

    done = place.run("batch", str(file), "-j1")

    assert done.returncode == 1
    told = done.stdout.splitlines()
    assert told[0].startswith("✓ good (")
    assert told[1].startswith("✗ bad (")
    assert told[1].endswith("): claude failed: It did not work.")
    assert told[2].startswith("✓ 3 (")
    assert [(row["id"], row["outcome"], row["kind"], row["exit_code"]) for row in results(file)] == [
        ("good", "succeeded", None, 0),
        ("bad", "failed", "agent_failed", 1),
        ("3", "succeeded", None, 0),
    ]
    assert done.stderr.startswith("✗ 2 of 3 jobs succeeded, 1 failed (")
    assert f"Results: {file.with_name('jobs.results.jsonl')}" in done.stderr
    assert "--retry-failed" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert (place.workspace / "made.txt").read_text() == "hello\n"


def test_two_jobs_of_one_id_are_refused_before_any_is_run(place: Place) -> None:
    file = write(place, GOOD, BAD, GOOD)

    done = place.run("batch", str(file))

    assert done.returncode == 2
    assert "jobs.jsonl:3: " in done.stderr
    assert "jobs.jsonl:1 has this one" in done.stderr
    assert runs(place) == 0


@pytest.mark.parametrize("file", [".", "", "/"])
def test_a_folder_is_no_file_of_jobs(place: Place, file: str) -> None:
    done = place.run("batch", file)

    assert done.returncode == 2
    assert done.stderr.startswith("container-runner: FILE ")
    assert "Traceback" not in done.stderr


def test_what_the_engines_failures_ask_for_is_said_once(place: Place) -> None:
    file = write(place, GOOD, {**GOOD, "id": "again"})

    done = place.run("batch", str(file), "--engine=/bin/false")

    assert done.returncode == 5
    advice = "Its own words are above"
    assert done.stderr.count(advice) == 1


def test_what_is_finished_is_skipped_and_a_failure_is_still_one(place: Place) -> None:
    file = write(place, GOOD, BAD)
    place.run("batch", str(file))

    again = place.run("batch", str(file))
    retried = place.run("batch", str(file), "--retry-failed")

    assert (again.returncode, again.stdout) == (1, "")
    assert "2 done before" in again.stderr
    assert retried.stdout.startswith("✗ bad (")
    assert runs(place) == 3
    write(place, GOOD | {"prompt": "something else"})
    assert place.run("batch", str(file)).returncode == 0
    assert runs(place) == 4


def test_json_is_the_results_and_nothing_else(place: Place) -> None:
    file = write(place, GOOD, BAD)

    done = place.run("batch", str(file), "--json", "-j1")

    assert (done.returncode, done.stderr) == (1, "")
    assert [json.loads(row) for row in done.stdout.splitlines()] == results(file)


def test_a_job_says_more_than_its_prompt(place: Place) -> None:
    (place.folder / "other").mkdir()
    if os.geteuid() == 0:
        os.chown(place.folder / "other", 1000, 1000)
    (place.folder / "prompt.txt").write_text("edit here.txt hello")
    job = {"prompt_file": "prompt.txt", "workspace": "other", "agent": "bob", "model": "m1", "resume": "abc"}
    more: dict[str, Any] = {"max_budget_usd": 2, "json_schema": {"type": "object"}, "effort": "low"}
    more |= {"fork": True, "tools": ["Read"], "max_turns": 3, "append_system_prompt": "Be brief.", "grace": 9}

    done = place.run("batch", str(write(place, job | more)), "--model=m2")

    assert done.returncode == 0, done.stderr
    assert (place.folder / "other" / "here.txt").read_text() == "hello\n"
    words = place.agent_argv()
    assert {"--model=m1", "--resume=abc", "--fork-session", "--tools=Read", "--max-turns=3"} <= {*words}
    assert {"--append-system-prompt=Be brief.", "--max-budget-usd=2", "--effort=low"} <= {*words}
    assert '--json-schema={"type": "object"}' in words
    assert any("container-runner-bob-" in word for word in words)


def test_flags_hold_for_the_jobs_that_do_not_say_otherwise(place: Place) -> None:
    file = write(place, {"prompt": "sleep 5", "timeout": "0.2s"}, {"prompt": "sleep 0.5"}, {"prompt": "sleep 5"})

    done = place.run("batch", str(file), "--timeout=2", "-j3")

    assert done.returncode == 1
    assert {row["id"]: row["message"] for row in results(file)} == {
        "1": "The agent took longer than 0.2 seconds.",
        "2": None,
        "3": "The agent took longer than 2 seconds.",
    }


def test_toml_has_defaults(place: Place) -> None:
    file = place.folder / "jobs.toml"
    file.write_text(
        '[defaults]\nmodel = "m1"\n[[job]]\nprompt = "one"\n[[job]]\nid = "x"\nprompt = "two"\nmodel = "m2"\n'
    )

    done = place.run("batch", str(file), "-j1")

    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in results(file)] == ["1", "x"]
    assert "--model=m2" in place.agent_argv()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            '[defaults]\nmodel = "m1"\n\n[[job]]\nprompt = "one"\n[[ job ]]\nprompt = "two"\nworkspace = "none"\n',
            ":6: ",
        ),
        ('job = [{ prompt = "one" }, { prompt = "two", workspace = "none" }]\n', ", job 2: "),
    ],
)
def test_a_job_in_toml_that_is_refused_is_named_by_its_line(place: Place, text: str, told: str) -> None:
    (place.folder / "jobs.toml").write_text(text)

    done = place.run("batch", str(place.folder / "jobs.toml"))

    assert done.returncode == 2
    assert f"jobs.toml{told}" in done.stderr
    assert not (place.folder / "jobs.results.jsonl").exists()


def test_a_job_may_have_an_image_of_its_own(place: Place) -> None:
    file = write(place, GOOD, {"id": "other", "prompt": "hello", "image": "other/image:1"})

    done = place.run("batch", str(file), "-j1")

    assert done.returncode == 0, done.stderr
    calls = (place.folder / "engine" / "calls").read_text().splitlines()
    started = [json.loads(call) for call in calls if '["run", "--rm"' in call]
    assert ["other/image:1" in json.dumps(call) for call in started] == [False, True]


def test_an_engine_that_was_not_there_leaves_jobs_that_the_next_time_runs(place: Place) -> None:
    file = write(place, GOOD, *({"id": str(number), "prompt": "hello"} for number in range(3)))
    gone = place.folder / "docker"
    played = place.folder / "engine" / "docker"
    gone.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = run ]; then echo "docker: Cannot connect to the Docker daemon at unix:///x." >&2; exit 125; fi\n'
        f'exec {played} "$@"\n'
    )
    gone.chmod(0o755)

    done = place.run("batch", str(file), "-j1", f"--engine={gone}")
    again = place.run("batch", str(file))

    assert (done.returncode, len(done.stdout.splitlines())) == (3, 1), done.stderr
    assert done.stderr.count(": no more jobs are started.") == 1
    assert "0 of 4 jobs succeeded, 1 could not start, 3 did not end" in done.stderr
    assert done.stderr.endswith("Run it again to go on.\n")
    assert "--retry-failed" not in done.stderr
    assert (again.returncode, runs(place)) == (0, 4), again.stderr
    assert "4 of 4 jobs succeeded" in again.stderr


def test_a_budget_for_all_jobs_ends_the_batch_and_a_larger_one_goes_on(place: Place) -> None:
    file = write(place, *({"id": str(number), "prompt": "hello"} for number in range(3)))

    done = place.run("batch", str(file), "-j1", "--total-budget-usd=0.001")
    again = place.run("batch", str(file), "--total-budget-usd=10")

    assert done.returncode == 1
    assert "1 of 3 jobs succeeded, 2 did not end" in done.stderr
    assert " of $0.001 are spent: no more jobs are started." in done.stderr
    assert done.stderr.endswith("Run it again to go on.\n")
    assert (again.returncode, runs(place)) == (0, 3), again.stderr


def test_shards_are_run_apart_and_their_results_are_those_of_the_batch(place: Place) -> None:
    file = write(place, *({"prompt": f"edit {number}.txt hello"} for number in range(1, 4)), "hello")
    for shard in ("1/2", "2/2", "2/2"):
        done = place.run("batch", str(file), f"--shard={shard}")
        assert done.returncode == 0, done.stderr
    one, two = (place.folder / f"jobs.{number}-of-2.results.jsonl" for number in (1, 2))

    merged = subprocess.run([COMMAND, "batch", "merge", one, two], capture_output=True, timeout=60, check=False)
    (every := place.folder / "all.jsonl").write_bytes(merged.stdout)
    again = place.run("batch", str(file), f"--results={every}")

    ids = [sorted(json.loads(row)["id"] for row in rows.read_text().splitlines()) for rows in (one, two)]
    assert ids == [["1", "3"], ["2", "4"]]
    assert merged.stderr == b""
    assert "4 of 4 jobs succeeded, 4 done before" in again.stderr
    assert runs(place) == 4


def test_a_shard_knows_the_ids_of_the_whole_file_and_may_have_no_job(place: Place) -> None:
    more = place.run("batch", str(write(place, GOOD, {"prompt": "hello", "workspace": "not-here"})), "--shard=3/3")
    assert (more.returncode, more.stderr) == (0, "· Shard 3/3 has no job.\n")
    assert place.run("batch", str(write(place)), "--shard=1/3").returncode == 2

    twice = place.run("batch", str(write(place, GOOD, BAD, GOOD)), "--shard=1/3")

    assert twice.returncode == 2
    assert "an id that no other job has" in twice.stderr
    assert runs(place) == 0


def test_jobs_come_from_stdin(place: Place) -> None:
    done = place.run("batch", "-", "--json", stdin='{"prompt": "hello"}\n\n"again"\n')

    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(row)["result"] for row in done.stdout.splitlines()) == ["again", "hello"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"promt": "x"}', "perhaps prompt; `container-runner batch --help`"),
        ('{"prompt": "x", "memory": "1g"}', "--memory"),
        ('{"prompt": "x"}\n{"id": 7, "prompt": "y"}', "jobs.jsonl:2: id"),
        ('{"prompt": "x", "prompt_file": "y"}', "either prompt or prompt_file"),
        ('{"prompt_file": "none"}', "no such file"),
        ('{"prompt": " "}', "some text"),
        ('{"prompt": 7}', "some text"),
        ('{"workspace": 7, "prompt": "x"}', "workspace"),
        ('{"prompt": "x"}\n{"workspace": "none", "prompt": "x"}', "jobs.jsonl:2: "),
        ('{"prompt": "x"}\n{"image": "", "prompt": "x"}', "jobs.jsonl:2: "),
        ('{"image": 7, "prompt": "x"}', "jobs.jsonl:1: "),
        ('{"max_budget_usd": 0, "prompt": "x"}', "max_budget_usd must be a number of US dollars above 0"),
        ('{"json_schema": "{}", "prompt": "x"}', "json_schema must be a JSON Schema"),
        ('{"prompt": "x", "timeout": "soon"}', "timeout"),
        ('{"prompt": "x", "permission_mode": "yolo"}', "permission_mode"),
        ('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', "got 'a'"),
        ("[1]", "one job a line"),
        ('{"prompt": "x"', "jobs.jsonl:1: "),
        ("\udcff", "jobs.jsonl:1: "),
    ],
)
def test_a_job_that_is_refused_is_named_and_none_is_started(place: Place, text: str, told: str) -> None:
    file = place.folder / "jobs.jsonl"
    file.write_bytes(text.encode(errors="surrogateescape"))

    done = place.run("batch", str(file))

    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert runs(place) == 0
    assert not (place.folder / "jobs.results.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["/no/such/file"], "no such file"),
        (["-"], "--results"),
        (["jobs.jsonl", "--jobs=0"], "jobs"),
        (["jobs.toml"], "expected '='"),
        (["other.toml"], "perhaps job"),
    ],
)
def test_what_is_refused_has_a_reason(place: Place, words: list[str], told: str) -> None:
    (place.workspace / "jobs.jsonl").write_text('"hello"')
    (place.workspace / "jobs.toml").write_text('"hello"')
    (place.workspace / "other.toml").write_text('jobs = ["hello"]')

    done = place.run("batch", *words)

    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_secrets_in_a_misspelt_key_are_not_shown(place: Place) -> None:
    done = place.run("batch", str(write(place, {"prompt": "x", "api_key": "hunter2"})))

    assert "api_key" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_batch_that_was_killed_goes_on_where_it_was(place: Place) -> None:
    file = write(place, GOOD, {"id": "slow", "prompt": "sleep 3"})
    command = [COMMAND, "batch", str(file), "-j1", *place.flags]
    with subprocess.Popen(command, cwd=place.workspace, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("✓ good")
        process.send_signal(signal.SIGKILL)

    done = place.run("batch", str(file))

    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in results(file)] == ["good", "slow"]
    assert done.stdout.startswith("✓ slow")


# At a terminal


def at_terminal(place: Place, *words: str) -> Terminal:
    return Terminal([COMMAND, "batch", *words, *place.flags], cwd=place.workspace)


def test_jobs_at_work_have_a_bar_each_and_one_for_all(place: Place) -> None:
    slow = [{"id": f"slow-{number}", "prompt": "sh sleep 1.5"} for number in range(2)]
    with at_terminal(place, str(write(place, GOOD, BAD, *slow)), "-j2") as terminal:
        shown = terminal.wait_for(lambda text: text.count("Bash sleep 1.5") == 2)
        code = terminal.finish()

        assert "✓ good" in shown
        assert "✗ bad " in shown
        for row in ("slow-0", "slow-1", "2 of 4"):
            assert re.search(f"[\u2800-\u28ff] {row} +━━━", shown)
        assert "1 failed · 2 at work" in shown
        assert code == 1
        assert "at work" not in terminal.all_text
        assert "✗ 3 of 4 jobs succeeded, 1 failed" in terminal.all_text
        assert terminal.raw.rfind(SHOW_CURSOR) > terminal.raw.rfind(HIDE_CURSOR) >= 0


def test_ctrl_c_stops_all_agents_and_the_next_time_goes_on(place: Place) -> None:
    file = write(place, GOOD, *({"id": f"slow-{number}", "prompt": "sleep 1000"} for number in range(3)))
    with at_terminal(place, str(file), "-j3") as terminal:
        terminal.wait_for(lambda text: "✓ good" in text and text.count("waiting for the model") == 3)
        began = time.monotonic()
        terminal.type("\x03")
        terminal.wait_for("SIGINT: stopping the agents…")

        assert terminal.finish() == 130
        assert time.monotonic() - began < 10
        assert "✗ 1 of 4 jobs succeeded, 3 did not end" in terminal.text
        assert f"{NOTHING_LEFT}\n  Run it again to go on." in terminal.text
        assert "Traceback" not in terminal.all_text
        assert agent_is_gone(place)
    assert [row["id"] for row in results(file)] == ["good"]


def test_more_jobs_than_rows_are_no_trouble(place: Place) -> None:
    file = write(place, *({"id": f"job-{number}", "prompt": "sleep 1"} for number in range(8)))
    command = [COMMAND, "batch", str(file), "-j8", *place.flags]
    with Terminal(command, cwd=place.workspace, columns=40, rows=9) as terminal:
        terminal.wait_for("more at work")

        assert terminal.finish() == 0
        assert "✓ 8 of 8 jobs succeeded" in terminal.all_text


def test_a_narrow_terminal_has_the_names_and_no_bars(place: Place) -> None:
    file = write(place, *({"id": f"job-{number}", "prompt": "sleep 1"} for number in range(2)))
    command = [COMMAND, "batch", str(file), *place.flags]
    with Terminal(command, cwd=place.workspace, columns=24, rows=9) as terminal:
        shown = terminal.wait_for(lambda text: "job-0" in text and "job-1" in text)

        assert "0 of 2 2 a" in shown
        assert "━" not in shown
        assert terminal.finish() == 0


def test_names_and_results_of_jobs_are_no_markup(place: Place) -> None:
    with at_terminal(place, str(write(place, {"id": "[red]x[/]", "prompt": "[bold]y[/bold] :smile:"}))) as terminal:
        assert terminal.finish() == 0
        assert "✓ [red]x[/]" in terminal.all_text
        assert "[bold]y[/bold] :smile:" in terminal.all_text
