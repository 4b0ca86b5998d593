"""The script that looks at a box from inside, and what becomes of its words."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from container_runner.box.argv import DOCKER, PODMAN_ROOTLESS, Dialect
from container_runner.doctor.inside import PROBE, check_inside
from tests.doctor.machines import INSIDE, engine, request


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_probe_is_a_script_for_every_shell(shell: str, tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "CONTAINER_RUNNER_RUN": "1"}

    done = subprocess.run(
        [shell, "-c", PROBE, "sh", "sh", "-"], env=environ, capture_output=True, text=True, check=True, cwd=tmp_path
    )

    said = dict(line.split("\t", 1) for line in done.stdout.splitlines())
    assert done.stderr == ""
    assert {"Uid", "NoNewPrivs", "Seccomp", "CapBnd", "root", "tmp", "home", "workspace", "sessions"} <= said.keys()
    assert said["home"] == "yes"
    assert said["agent"].endswith("sh")
    assert "nameless" not in said  # whoever runs this has a name
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dialect", "port", "status"),
    [(PODMAN_ROOTLESS, "80", "fail"), (PODMAN_ROOTLESS, "8080:80", "ok"), (DOCKER, "80", "ok")],
)
def test_a_port_that_only_root_may_open(
    dialect: Dialect, port: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "container_runner.doctor.inside._first_port", lambda engine: 1024 if engine.dialect.keep_id else 0
    )
    runner, options = request(tmp_path, ports=(port,))
    said = {name: (value,) for name, value in INSIDE.items()}

    checks = {check.name: check for check in check_inside(runner, options, engine(dialect), {}, said)}

    assert checks["network"].status == status
    assert ("ip_unprivileged_port_start=80" in str(checks["network"].fix)) == (status == "fail")


def test_a_uid_without_a_name_is_told(tmp_path: Path) -> None:
    runner, options = request(tmp_path)
    said = {name: (value,) for name, value in {**INSIDE, "Uid": "4242", "nameless": "yes"}.items()}

    box = {check.name: check for check in check_inside(runner, options, engine(DOCKER), {}, said)}["box"]

    assert (box.status, "4242" in box.found, "image build" in str(box.fix)) == ("warn", True, True)
