"""The scripts in the container: that every shell can read them, and what they report."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.box import guest
from container_runner.box.guest import Report
from container_runner.config import paths

RUN = "0123456789abcdef" * 2
SHELLS = [["sh"], ["dash"], ["bash"], ["busybox", "sh"]]
SCRIPTS = {
    "PID1": guest.PID1,
    "EXEC": guest.EXEC,
    "HOLD": guest.HOLD,
    "KILL": guest.KILL,
    "SWEEP": guest.SWEEP,
    "PROBE": guest.PROBE,
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_every_shell_reads_every_script(shell: list[str], script: str) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"there is no {shell[0]} here")

    done = subprocess.run([*shell, "-n", "-c", SCRIPTS[script]], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_has_nothing_of_bash(script: str) -> None:
    # `[[`, `==`, arrays, `local`, `function`, here-strings, process substitution.
    assert not re.search(r"\[\[|==|\blocal\b|\bfunction\b|<<<|<\(|\$\(\(\(|=\(|&>", SCRIPTS[script])


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_uses_no_programs_but_those_that_are_asked_for(script: str) -> None:
    others = {
        "awk",
        "basename",
        "cp",
        "cut",
        "date",
        "env",
        "grep",
        "ls",
        "mkdir",
        "ps",
        "sed",
        "setsid",
        "timeout",
        "tr",
    }
    words = set(re.findall(r"(?:^|[;|&({]|\b(?:do|then|else|until|if)\b)\s*([a-z]+)", SCRIPTS[script], re.MULTILINE))

    assert not words & others


def test_a_group_is_signalled_in_the_one_spelling_that_every_shell_takes() -> None:
    for script in SCRIPTS.values():
        assert not re.search(r"kill -s|kill -- |kill -TERM -- |pkill|killall", script)


def test_our_folders_lie_below_one_root() -> None:
    for path in (paths.RUN_DIR, paths.HOME, paths.SESSIONS):
        assert path.startswith(f"{paths.ROOT}/")


# What the wrapper reports

TOLD = [
    ("", {}),
    (f"started {RUN} 7", {}),
    (f"missing {RUN} mkfifo wc", {"refusal": "missing", "missing": ("mkfifo", "wc")}),
    (f"no-command {RUN}", {"refusal": "no-command"}),
    (f"not-executable {RUN}", {"refusal": "not-executable"}),
    (f"prompt-lost {RUN}", {"refusal": "prompt-lost"}),
    (f"stop {RUN} term", {"stop": "term"}),
    (f"stop {RUN} kill", {"stop": "kill"}),
    (f"oom {RUN} 3", {"oom_kills": 3}),
    (f"oom {RUN} many", {}),
    (f"ended {RUN} 0", {"ended": 0}),
    (f"ended {RUN} 143", {"ended": 143}),
    (f"ended {RUN} x", {}),
    (f"ended {RUN} -1", {}),
    (f"ended {RUN}", {}),
    (f"left {RUN}", {"left": True}),
    (f"something-new {RUN} 1 2 3", {}),
]


@pytest.mark.parametrize(("said", "expected"), TOLD, ids=[said.replace(RUN, "RUN") or "nothing" for said, _ in TOLD])
def test_a_line_of_the_wrapper(said: str, expected: dict[str, object]) -> None:
    report, rest = Report.parse(f"container-runner: {said}\n".encode() if said else b"", RUN)

    assert report == Report(**expected)  # type: ignore[arg-type]  # the fields vary
    assert rest == b""


@pytest.mark.parametrize("said", ["oom 3", "ended 3", "stop kill", "no-command", f"ended {RUN[:-1]} 3", "", "ended"])
def test_an_agents_line_that_lacks_the_runs_id_is_its_own(said: str) -> None:
    stderr = f"container-runner: {said}\n".encode()

    assert Report.parse(stderr, RUN) == (Report(), stderr)


def test_our_lines_are_taken_out_of_what_the_agent_wrote() -> None:
    stderr = f"before\ncontainer-runner: ended {RUN} 3\nafter \xff\n".encode("latin-1")

    report, rest = Report.parse(stderr, RUN)

    assert rest == b"before\nafter \xff\n"
    assert report.ended == 3


def test_of_several_lines_the_last_counts() -> None:
    stderr = f"container-runner: stop {RUN} term\ncontainer-runner: stop {RUN} kill\n".encode()

    assert Report.parse(stderr, RUN)[0].stop == "kill"


@given(st.binary(), st.text())
def test_no_stderr_makes_it_fail(stderr: bytes, run: str) -> None:
    report, rest = Report.parse(stderr, run)

    assert len(rest) <= len(stderr)
    assert isinstance(report, Report)


WORDS = ["ended", "oom", "stop", "missing", RUN, "0", "1e9", "-1", "\xff", "container-runner:"]


@given(st.lists(st.sampled_from(WORDS)))
def test_no_words_make_it_fail(words: list[str]) -> None:
    Report.parse(b"container-runner: " + " ".join(words).encode() + b"\n", RUN)


def test_the_started_line_is_told_from_that_of_another_run() -> None:
    assert guest.started_line("ab") == b"container-runner: started ab "
    assert not b"container-runner: started abc 7".startswith(guest.started_line("ab"))
