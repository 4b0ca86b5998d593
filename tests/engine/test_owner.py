"""Whether the process that made a container still lives."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import psutil
import pytest

from container_runner.engine.owner import Owner


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def owner_of(process: subprocess.Popen[bytes]) -> Owner:
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return attrs.evolve(Owner.current(), pid=process.pid, started=int(stat.split()[21]))


def test_we_are_alive() -> None:
    owner = Owner.current()

    assert owner.pid == os.getpid()
    assert owner.is_on_this_host
    assert owner.state == "alive"


def test_a_forked_child_is_another_owner() -> None:
    Owner.current()
    code = (
        "import os; from container_runner.engine.owner import Owner; before = Owner.current(); pid = os.fork()\n"
        "if pid: raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "assert Owner.current() != before; assert Owner.current().pid == os.getpid()"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


def test_an_owner_comes_back_from_its_labels() -> None:
    owner = Owner.current()

    assert Owner.from_labels({"other": "label", **owner.to_labels()}) == owner
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", value) for value in owner.to_labels().values())


@pytest.mark.parametrize("broken", ["host", "boot", "pid-namespace", "pid", "started"])
def test_labels_that_do_not_name_an_owner_name_none(broken: str) -> None:
    labels = Owner.current().to_labels()
    del labels[f"container-runner.{broken}"]
    assert Owner.from_labels(labels) is None
    if broken in ("pid", "started"):
        assert Owner.from_labels({**labels, f"container-runner.{broken}": "x"}) is None


def test_another_process_is_alive_until_it_has_ended(child: subprocess.Popen[bytes]) -> None:
    owner = owner_of(child)
    states = [owner.state]

    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    states.append(owner.state)  # its zombie still has the pid

    child.wait()
    states.append(owner.state)
    assert states == ["alive", "dead", "dead"]


def test_a_later_process_with_the_same_pid_is_another(child: subprocess.Popen[bytes]) -> None:
    owner = owner_of(child)

    assert attrs.evolve(owner, started=owner.started - 1).state == "dead"


def test_a_program_may_call_itself_what_it_wants(tmp_path: Path) -> None:
    """The kernel writes the name into the middle of the line that says when it started."""
    program = tmp_path / ") R 1 2 ("
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "1000"]) as process:
        name = Path(f"/proc/{process.pid}/comm")
        while name.read_text().rstrip("\n") != program.name:
            time.sleep(0.001)
        started = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        assert attrs.evolve(Owner.current(), pid=process.pid, started=started).state == "alive"
        process.kill()


def test_a_clock_that_is_set_kills_nobody(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    owner = owner_of(child)
    now, boot = time.time(), psutil.boot_time()

    monkeypatch.setattr(time, "time", lambda: now + 86400)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 86400)  # as the kernel reckons it after a step
    assert owner.state == "alive"


def test_before_the_machine_started_anew_nobody_lives_now() -> None:
    assert attrs.evolve(Owner.current(), boot="another").state == "dead"


def test_of_another_machine_we_know_nothing() -> None:
    elsewhere = attrs.evolve(Owner.current(), host="0" * 16, boot="another", pid=1, started=0)

    assert not elsewhere.is_on_this_host
    assert elsewhere.state == "unknown"


def test_of_a_pid_in_another_namespace_we_know_nothing() -> None:
    assert attrs.evolve(Owner.current(), pid_namespace="1", started=0).state == "unknown"


def test_a_process_that_we_may_not_look_at_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> str:
        raise psutil.AccessDenied

    owner = Owner.current()
    monkeypatch.setattr(psutil.Process, "status", refuse)

    assert owner.state == "alive"


def test_a_process_that_proc_hides_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a /proc with hidepid does; the kernel still answers to signal 0."""

    def hide(self: psutil.Process) -> str:
        raise psutil.NoSuchProcess(self.pid)

    owner = Owner.current()
    monkeypatch.setattr(psutil.Process, "status", hide)

    assert owner.state == "alive"
