"""Each check tells what it should, with a line that can be typed."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from container_runner import CommandRuntime, ContainerConfig
from container_runner.agents import Runtime
from container_runner.box.argv import PODMAN, PODMAN_ROOTLESS
from container_runner.doctor.checks import (
    Check,
    check_credentials,
    check_daemon,
    check_limits,
    check_refused,
    check_rootless,
    check_secrets,
    check_versions,
    engine_limits,
    measured_limits,
    runc_vulnerabilities,
    without_daemon,
    without_engine,
)
from container_runner.engine.engine import Engine
from container_runner.errors import (
    ConfigError,
    EngineTimeoutError,
    EngineUnreachableError,
)
from tests.doctor.machines import DOCKER_INFO, DOCKER_VERSION, INSIDE, ROOTLESS_DOCKER, engine, podman_info, request

# Versions


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.1.5+ds1", 4),
        ("1.1.11", 4),
        ("1.1.12", 3),
        ("1.2.7", 3),
        ("1.2.8", 0),
        ("1.3.0-rc.1", 3),
        ("1.3.2", 3),
        ("1.3.3", 0),
        ("1.4.0", 0),
        ("2.0", 0),
    ],
)
def test_old_runcs_are_known(version: str, expected: int) -> None:
    assert len(runc_vulnerabilities(version)) == expected


@pytest.mark.parametrize(
    ("version", "status"),
    [("27.5.1", "ok"), ("28.0.0", "warn"), ("28.0.2", "warn"), ("28.0.3", "ok"), ("28.2.2", "ok"), ("", "ok")],
)
def test_the_docker_clients_that_lose_output_are_known(version: str, status: str) -> None:
    check = check_versions(engine(version=version), DOCKER_INFO, DOCKER_VERSION)

    assert check.status == status
    assert bool(check.fix) == (status == "warn")


@pytest.mark.parametrize("versions", [{}, {"Server": None}, {"Server": {"Components": ["x"]}}, {"Server": []}])
def test_a_version_that_nobody_tells_is_no_failure(versions: Mapping[str, Any]) -> None:
    assert check_versions(engine(), DOCKER_INFO, versions).status == "ok"


def test_podman_tells_its_runc_and_its_habit() -> None:
    old = check_versions(engine(PODMAN, "4.3.1", "podman"), podman_info(runtime="runc version 1.1.5+ds1\nspec: 1"), {})
    new = check_versions(engine(PODMAN, "5.4.2", "podman"), podman_info(), {})

    assert old.status == "warn"
    assert "runc 1.1.5+ds1 " in old.found
    assert new == Check(name="versions", status="ok", found="podman client 5.4.2")
    assert "one at a time" in check_versions(engine(PODMAN, "4.9", "podman"), podman_info(), {}).found


# Who the engine is


@pytest.mark.parametrize(
    ("found", "info", "status", "word"),
    [
        (engine(), DOCKER_INFO, "ok", "no"),
        (engine(), ROOTLESS_DOCKER, "warn", "yes"),
        (engine(PODMAN), podman_info(), "ok", "no"),
        (engine(PODMAN_ROOTLESS), podman_info(), "ok", "yes"),
    ],
)
def test_rootless_is_told(found: Engine, info: Mapping[str, Any], status: str, word: str) -> None:
    check = check_rootless(found, info)

    assert (check.status, check.found.split(":")[0].split(",")[0]) == (status, word)


def test_podman_needs_no_daemon() -> None:
    assert "none" in check_daemon(engine(PODMAN), podman_info()).found
    assert "Docker Engine 28.2.2 on Debian" in check_daemon(engine(), DOCKER_INFO).found


# Limits


@pytest.mark.parametrize(
    ("found", "info", "version", "holds"),
    [
        (engine(), DOCKER_INFO, "2", {"memory", "processes", "processors"}),
        (engine(), {**DOCKER_INFO, "CgroupVersion": "1", "PidsLimit": False}, "1", {"memory", "processors"}),
        (engine(), {}, "1", set()),
        (engine(PODMAN), podman_info("cpu", "memory", "pids"), "2", {"memory", "processes", "processors"}),
        (engine(PODMAN_ROOTLESS), podman_info("memory", "pids"), "2", {"memory", "processes"}),
        (engine(PODMAN_ROOTLESS), podman_info(version="v1"), "1", set()),
    ],
)
def test_an_engine_says_what_it_can_limit(
    found: Engine, info: Mapping[str, Any], version: str, holds: set[str]
) -> None:
    assert engine_limits(found, info) == (version, holds)


@pytest.mark.parametrize(
    ("said", "missing"),
    [
        ({}, ""),
        ({"memory": "max"}, "memory"),
        ({"memory": str(2**63 - 4096)}, "memory"),
        ({"memory": ""}, "memory"),
        ({"pids": "max"}, "processes"),
        ({"shares": "1024"}, "processors"),
        ({"shares": None, "weight": "20"}, ""),
        ({"shares": None, "weight": "59"}, ""),
        ({"shares": None, "weight": "100"}, "processors"),
        ({"shares": None}, "processors"),
    ],
)
def test_limits_are_measured_in_the_box(said: dict[str, str | None], missing: str) -> None:
    values = {name: (value,) for name, value in {**INSIDE, **said}.items() if value is not None}

    assert {"memory", "processes", "processors"} - measured_limits(ContainerConfig(image="i"), values) == (
        {missing} if missing else set()
    )


@pytest.mark.parametrize(
    ("release", "program"),
    [({"ID": "debian"}, "update-grub"), ({"ID": "mint", "ID_LIKE": "ubuntu debian"}, "update-grub"),
     ({"ID": "fedora"}, "grubby"), ({}, "grubby")],
)  # fmt: skip
def test_the_kernel_is_told_as_the_distribution_does_it(
    release: dict[str, str], program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: release)
    monkeypatch.setattr("container_runner.doctor.advice._has_systemd", lambda: True)

    check = check_limits(engine(PODMAN_ROOTLESS), podman_info(version="v1"), None, {})

    assert program in str(check.fix)
    assert "systemd.unified_cgroup_hierarchy=1" in str(check.fix)
    subprocess.run(["sh", "-n", "-c", str(check.fix)], check=True)


def test_limits_that_do_not_hold_are_a_warning_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container_runner.doctor.advice._has_systemd", lambda: True)
    old = check_limits(engine(PODMAN_ROOTLESS), podman_info(version="v1"), None, {})
    new = check_limits(engine(PODMAN_ROOTLESS), podman_info("memory", "pids"), None, {})

    assert old.status == new.status == "warn"
    assert old.found.startswith("cgroup v1, rootless: no limit on memory, processes, processors")
    assert "unified_cgroup_hierarchy" in str(old.fix)
    assert "Delegate=cpu" in str(new.fix)
    subprocess.run(["sh", "-n", "-c", str(new.fix)], check=True)


def test_without_systemd_nobody_delegates_and_no_kernel_parameter_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container_runner.doctor.advice._has_systemd", lambda: False)

    check = check_limits(engine(PODMAN_ROOTLESS), podman_info(version="v1"), None, {})

    assert "an engine of root's" in str(check.fix)
    assert "unified_cgroup_hierarchy" not in str(check.fix)


# What a run is given


def credentials(tmp_path: Path, runtime: Runtime | None = None, **fields: Any) -> Check:
    runner, options = request(tmp_path, runtime, **fields)
    command = runner.runtime.command(options, contained=True)
    return check_credentials(runner.config, command.credentials, runner.plan(options))


@pytest.mark.usefixtures("bare")
def test_no_login_is_a_failure_with_the_line_to_type(tmp_path: Path) -> None:
    check = credentials(tmp_path)

    assert check.status == "fail"
    assert check.fix is not None
    assert check.fix.startswith("export ANTHROPIC_API_KEY=")


@pytest.mark.usefixtures("bare")
def test_a_login_of_any_kind_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert credentials(tmp_path, credentials="none").status == "ok"
    assert credentials(tmp_path, CommandRuntime(["agent"])).status == "ok"
    assert credentials(tmp_path, env={"ANTHROPIC_BASE_URL": "http://proxy"}).status == "ok"
    file = tmp_path / "home/.claude/.credentials.json"
    file.parent.mkdir()
    file.write_text('{"token": "x"}')
    file.chmod(0o644)
    assert ".credentials.json" in credentials(tmp_path).found
    assert credentials(tmp_path, credentials="env").status == "fail"
    file.unlink()
    monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "s3cret")
    check = credentials(tmp_path)
    assert check.found == "CLAUDE_CODE_OAUTH_TOKEN from the environment"
    assert "s3cret" not in repr(check)


@pytest.mark.usefixtures("bare")
def test_an_optional_secret_that_is_not_set_is_a_warning_and_another_one_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, options = request(tmp_path, optional_secrets=("TOKEN", "PATH"))

    check = check_secrets(runner.config, runner.plan(options))
    assert (check.status, check.fix) == ("warn", "export TOKEN=VALUE")

    runner, options = request(tmp_path, secrets=("TOKEN", "PATH"))
    with pytest.raises(ConfigError) as caught:
        runner.plan(options)
    check = check_refused(caught.value, runner, "docker", None)
    assert (check.name, check.status, check.fix) == ("secrets", "fail", "export TOKEN=VALUE")

    monkeypatch.setenv("TOKEN", "s3cret")
    assert check_secrets(runner.config, runner.plan(options)).status == "ok"


# A daemon that does not answer


@pytest.mark.parametrize(
    ("systemd", "script", "line"),
    [
        (True, True, "systemctl start docker"),
        (False, True, "service docker start || { nohup dockerd >/var/log/dockerd.log 2>&1 & }"),
        (False, False, "{ nohup dockerd >/var/log/dockerd.log 2>&1 & }"),
    ],
)
def test_a_daemon_is_started_as_the_machine_starts_its_services(
    systemd: bool, script: bool, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("container_runner.doctor.advice._has_systemd", lambda: systemd)
    monkeypatch.setattr("pathlib.Path.exists", lambda *_: script)
    programs = {"dockerd", "sudo"}
    monkeypatch.setattr("shutil.which", lambda name, **_: f"/usr/bin/{name}" if name in programs else None)

    def fix(euid: int) -> str:
        monkeypatch.setattr("os.geteuid", lambda: euid)
        return str(without_daemon(EngineUnreachableError("It does not answer."), engine()).fix)

    assert fix(0) == line
    assert fix(1000) == (f"sudo {line}" if systemd else f"sudo sh -c {shlex.quote(line)}")
    programs.remove("sudo")
    assert fix(1000) == f"su - -c {shlex.quote(line)}"
    subprocess.run(["sh", "-n", "-c", fix(1000)], check=True)


@pytest.mark.parametrize(
    ("systemd", "start"), [(True, "systemctl restart docker"), (False, "kill -KILL $(cat /var/run/docker.pid); ")]
)
def test_a_daemon_that_hangs_is_started_anew(systemd: bool, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr("container_runner.doctor.advice._has_systemd", lambda: systemd)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    error = EngineTimeoutError("It is silent.")

    # A client may ask the daemon even for its own version.
    for check in (without_daemon(error, engine()), without_engine(error, "auto")):
        assert start in str(check.fix)
        subprocess.run(["sh", "-n", "-c", str(check.fix)], check=True)
    assert without_engine(error, "podman").fix == error.next_step
