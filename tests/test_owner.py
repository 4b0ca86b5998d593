"""Whether the process that made a container still lives."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import attrs
import psutil
import pytest

from container_runner.owner import Owner


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def owner_of(process: subprocess.Popen[bytes]) -> Owner:
    started = int(psutil.Process(process.pid).create_time())
    return attrs.evolve(Owner.current(), pid=process.pid, started=started)


def test_we_are_alive() -> None:
    owner = Owner.current()

    assert owner.pid == os.getpid()
    assert owner.is_on_this_host
    assert owner.is_alive


def test_an_owner_comes_back_from_its_labels() -> None:
    owner = Owner.current()

    assert Owner.from_labels({"other": "label", **owner.to_labels()}) == owner
    assert all(isinstance(value, str) for value in owner.to_labels().values())


@pytest.mark.parametrize("broken", ["host", "boot", "pid", "started"])
def test_labels_that_do_not_name_an_owner_name_none(broken: str) -> None:
    labels = Owner.current().to_labels()
    del labels[f"container-runner.{broken}"]
    assert Owner.from_labels(labels) is None
    if broken != "host":
        assert Owner.from_labels({**labels, f"container-runner.{broken}": "x"}) is None


def test_another_process_is_alive_until_it_has_ended(child: subprocess.Popen[bytes]) -> None:
    owner = owner_of(child)
    assert owner.is_alive

    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not owner.is_alive  # though its zombie still has the pid

    child.wait()
    assert not owner.is_alive


def test_a_later_process_with_the_same_pid_is_another(child: subprocess.Popen[bytes]) -> None:
    owner = owner_of(child)

    assert attrs.evolve(owner, started=owner.started - 2).is_alive  # clocks are not that exact
    assert not attrs.evolve(owner, started=owner.started - 60).is_alive


def test_before_the_machine_started_anew_nobody_lives_now() -> None:
    owner = Owner.current()

    assert attrs.evolve(owner, boot=owner.boot + 5).is_alive  # a clock was set
    assert not attrs.evolve(owner, boot=owner.boot - 3600).is_alive


def test_of_another_machine_we_know_nothing() -> None:
    elsewhere = attrs.evolve(Owner.current(), host="0" * 16, boot=0, pid=1, started=0)

    assert not elsewhere.is_on_this_host
    assert elsewhere.is_alive


def test_a_process_that_we_may_not_look_at_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> str:
        raise psutil.AccessDenied

    owner = Owner.current()
    monkeypatch.setattr(psutil.Process, "status", refuse)

    assert owner.is_alive
