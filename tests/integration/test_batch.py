"""`container-runner batch` with real engines: what it leaves, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.integration.engines import OWN
from tests.integration.runs import COMMAND, Box, on
from tests.integration.test_carried import GIT, commit, tree

pytestmark = on(*OWN)  # what is ours, whatever the engine's age

WAIT = 90


@contextmanager
def batch(
    box: Box, *jobs: dict[str, Any], image: str = "", flags: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """The command at work on *jobs*, with a folder each."""
    file = box.folder / "jobs.jsonl"
    for job in jobs:
        if not (box.folder / job["workspace"]).exists():
            box.new_folder(job["workspace"])
    file.write_text("".join(f"{json.dumps(job)}\n" for job in jobs))
    command = [COMMAND, "batch", str(file), "--jobs=3", f"--state-dir={box.state}", f"--engine={box.engine.binary}"]
    command += [f"--image={image or box.engine.images.tiny}", "--network=none", "--credentials=none", *flags]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, start_new_session=True) as process:  # type: ignore[call-overload]  # the pipes vary
        try:
            yield process
        finally:
            process.kill()


def outcomes(box: Box) -> dict[str, str | None]:
    rows = (box.folder / "jobs.results.jsonl").read_text().splitlines()
    return {result["id"]: result["kind"] for result in map(json.loads, rows)}


def test_each_job_works_in_its_own_folder_and_nothing_is_left(box: Box) -> None:
    jobs = [{"id": str(number), "prompt": f"edit made.txt {number}", "workspace": f"w{number}"} for number in range(4)]
    broken = {"id": "broken", "prompt": "kill KILL", "workspace": "w4"}
    late = {"id": "late", "prompt": "sleep 100", "workspace": "w5", "timeout": 1}

    with batch(box, *jobs, broken, late) as process:
        _, stderr = process.communicate(timeout=WAIT)

    assert process.returncode == 1, stderr
    assert outcomes(box) == {**dict.fromkeys("0123"), "broken": "agent_killed", "late": "total_timeout"}
    assert [(box.folder / f"w{number}" / "made.txt").read_text() for number in range(4)] == ["0\n", "1\n", "2\n", "3\n"]
    assert box.containers() == []


def test_a_signal_stops_all_agents_and_the_next_time_goes_on(box: Box) -> None:
    quick = {"id": "quick", "prompt": "hello", "workspace": "w0"}
    slow = [{"id": f"slow{number}", "prompt": "sleep 1000", "workspace": f"w{number}"} for number in (1, 2, 3)]
    with batch(box, quick, *slow) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("✓ quick")
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=WAIT)

    assert process.returncode == 130, stderr
    assert "3 did not end" in stderr
    assert "Traceback" not in stderr
    assert box.containers() == []

    with batch(box, quick, *({**job, "prompt": "hello"} for job in slow)) as process:
        stdout, stderr = process.communicate(timeout=WAIT)

    assert process.returncode == 0, stderr
    assert "quick" not in stdout
    assert outcomes(box) == dict.fromkeys(("quick", "slow1", "slow2", "slow3"))
    assert box.containers() == []


def test_jobs_on_one_folder_do_not_meet_and_each_ends_in_a_branch(box: Box) -> None:
    (box.workspace / "a").write_text("a\n")
    first = commit(box)
    before = tree(box.workspace)
    git = "git -c user.name=me -c user.email=me@x"
    jobs = [
        {"id": "one", "prompt": f"sh echo 1 >>a; {git} commit -q -a -m mine; ls >seen", "workspace": "project"},
        {"id": "two", "prompt": "sh echo 2 >>a; ls >seen", "workspace": "project"},
    ]

    with batch(box, *jobs, image=box.engine.images.git, flags=["--carried", "--branch=agent/{name}"]) as process:
        _, stderr = process.communicate(timeout=WAIT)

    assert process.returncode == 0, stderr
    rows = [json.loads(row) for row in (box.folder / "jobs.results.jsonl").read_text().splitlines()]
    assert {row["branch"]: row["files"] for row in rows} == {"agent/one": 2, "agent/two": 2}

    def ask(*words: str) -> list[str]:
        done = subprocess.run([*GIT, *words], cwd=box.workspace, check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    assert ask("log", "--format=%s", "agent/one")[1:] == ["mine", "first"]
    assert ask("rev-parse", "agent/two^") == [first]
    assert [ask("show", f"agent/{name}:{file}") for name in ("one", "two") for file in ("a", "seen")] == [
        *(["a", "1"], ["a", "seen"]),
        *(["a", "2"], ["a", "seen"]),
    ]
    after = tree(box.workspace)
    assert {name: facts for name, facts in after.items() if not name.startswith(".git/")} == {
        name: facts for name, facts in before.items() if not name.startswith(".git/")
    }
    assert after[".git/index"] == before[".git/index"]
    assert box.containers() == []
