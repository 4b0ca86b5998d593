"""The checks of `doctor`: what each makes of what an engine, an image and a machine say."""

from __future__ import annotations

import grp
import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from container_runner import Agent, ClaudeRuntime, CommandRuntime, ContainerConfig, ContainerRunner, ExecuteOptions
from container_runner.agents import Runtime
from container_runner.box.argv import DOCKER, PODMAN, PODMAN_ROOTLESS, Dialect
from container_runner.doctor import doctor
from container_runner.doctor.doctor import (
    NAMES,
    PROBE,
    Check,
    check_credentials,
    check_daemon,
    check_inside,
    check_limits,
    check_rootless,
    check_secrets,
    check_versions,
    engine_limits,
    examine,
    measured_limits,
    runc_vulnerabilities,
    without_daemon,
    without_engine,
)
from container_runner.engine.engine import Engine
from container_runner.errors import (
    ConfigError,
    EnginePermissionError,
    EngineTimeoutError,
    EngineUnreachableError,
)
from container_runner.testing import FakeEngine

INSIDE = {
    "Uid": "1000",
    "CapBnd": "0000000000000000",
    "NoNewPrivs": "1",
    "Seccomp": "2",
    "root": "no",
    "tmp": "yes",
    "home": "yes",
    "workspace": "yes",
    "sessions": "yes",
    "memory": str(2 * 1024**3),
    "pids": "512",
    "shares": "512",
    "network": "eth0",
    "agent": "/usr/local/bin/claude",
    "code": "0",
    "version": "2.1.330 (Claude Code)",
}
"""What `PROBE` says where all is well."""

DOCKER_INFO = {
    "ServerVersion": "28.2.2",
    "OperatingSystem": "Debian GNU/Linux 12 (bookworm)",
    "CgroupVersion": "2",
    "MemoryLimit": True,
    "PidsLimit": True,
    "CPUShares": True,
    "SecurityOptions": ["name=seccomp,profile=builtin"],
}
ROOTLESS_DOCKER = {**DOCKER_INFO, "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"]}
DOCKER_VERSION = {"Server": {"Components": [{"Name": "Engine"}, {"Name": "runc", "Version": "1.3.3"}]}}


def engine(dialect: Dialect = DOCKER, version: str = "28.2.2", binary: str = "docker") -> Engine:
    return Engine(binary=binary, dialect=dialect, environ={}, version=version)


def podman_info(*controllers: str, version: str = "v2", runtime: str = "crun version 1.8.1") -> dict[str, Any]:
    host = {"cgroupVersion": version, "cgroupControllers": [*controllers], "ociRuntime": {"version": runtime}}
    return {"host": host}


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
    monkeypatch.setattr("container_runner.doctor.doctor._has_systemd", lambda: True)

    check = check_limits(engine(PODMAN_ROOTLESS), podman_info(version="v1"), None, {})

    assert program in str(check.fix)
    assert "systemd.unified_cgroup_hierarchy=1" in str(check.fix)
    subprocess.run(["sh", "-n", "-c", str(check.fix)], check=True)


def test_limits_that_do_not_hold_are_a_warning_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container_runner.doctor.doctor._has_systemd", lambda: True)
    old = check_limits(engine(PODMAN_ROOTLESS), podman_info(version="v1"), None, {})
    new = check_limits(engine(PODMAN_ROOTLESS), podman_info("memory", "pids"), None, {})

    assert old.status == new.status == "warn"
    assert old.found.startswith("cgroup v1, rootless: no limit on memory, processes, processors")
    assert "unified_cgroup_hierarchy" in str(old.fix)
    assert "Delegate=cpu" in str(new.fix)
    subprocess.run(["sh", "-n", "-c", str(new.fix)], check=True)


def test_without_systemd_nobody_delegates_and_no_kernel_parameter_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container_runner.doctor.doctor._has_systemd", lambda: False)

    check = check_limits(engine(PODMAN_ROOTLESS), podman_info(version="v1"), None, {})

    assert "an engine of root's" in str(check.fix)
    assert "unified_cgroup_hierarchy" not in str(check.fix)


# What a run is given


def request(tmp_path: Path, runtime: Runtime | None = None, **fields: Any) -> tuple[ContainerRunner, ExecuteOptions]:
    (tmp_path / "work").mkdir(exist_ok=True)
    (tmp_path / "work").chmod(0o777)
    config = ContainerConfig(**{"image": "my/claude", "engine": "docker", **fields})
    runner = ContainerRunner(runtime or ClaudeRuntime(), config, tmp_path / "state")
    return runner, ExecuteOptions(prompt="x", agent=Agent(name="bot", workspace=tmp_path / "work"))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home and an environment without any login."""
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def credentials(tmp_path: Path, runtime: Runtime | None = None, **fields: Any) -> Check:
    runner, options = request(tmp_path, runtime, **fields)
    command = runner.runtime.command(options, contained=True)
    return check_credentials(runner.config, command.credentials, runner.plan(options), runner.state_dir)


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
    file.write_text("{}")
    file.chmod(0o644)
    assert ".credentials.json" in credentials(tmp_path).found
    assert credentials(tmp_path, credentials="env").status == "fail"
    file.unlink()
    monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "s3cret")
    check = credentials(tmp_path)
    assert check.found == "CLAUDE_CODE_OAUTH_TOKEN from the environment"
    assert "s3cret" not in repr(check)


@pytest.mark.usefixtures("bare")
def test_an_agent_that_has_logged_in_itself_needs_no_other_login(tmp_path: Path) -> None:
    file = tmp_path / "state/sessions/bot/.credentials.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")

    assert credentials(tmp_path).status == "ok"


@pytest.mark.usefixtures("bare")
def test_a_secret_that_is_not_set_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, options = request(tmp_path, secrets=("TOKEN", "PATH"))

    check = check_secrets(runner.config, runner.plan(options))
    assert (check.status, check.fix) == ("warn", "export TOKEN=VALUE")

    monkeypatch.setenv("TOKEN", "s3cret")
    assert check_secrets(runner.config, runner.plan(options)).status == "ok"


# The whole examination


@attrs.define
class Patient:
    """A machine with a fake engine on it."""

    engine: FakeEngine
    folder: Path

    def answer(self, *words: str, stdout: object = "", returncode: int = 0, stderr: str = "") -> None:
        """Register the engine's answer to a command."""
        text = stdout if isinstance(stdout, str) else json.dumps(stdout)
        fp = self.engine.fp
        fp.register(["docker", *words, fp.any()], stdout=text, returncode=returncode, stderr=stderr)

    def is_well(self, **inside: str | None) -> None:
        """Prepare an engine and an image where all is well but for *inside*."""
        self.answer("info", stdout=DOCKER_INFO)
        self.answer("version", stdout=DOCKER_VERSION)
        self.answer("image", "inspect", stdout="sha256:0123456789abcdef")
        said = {name: value for name, value in {**INSIDE, **inside}.items() if value is not None}
        self.engine.messages([f"{name}\t{value}" for name, value in said.items()])

    async def checks(self, **fields: Any) -> dict[str, Check]:
        found = [check async for check in examine(lambda: request(self.folder, **fields))]
        assert sorted(check.name for check in found) == sorted(NAMES), "each check once"
        return {check.name: check for check in found}


@pytest.fixture
def patient(fake_engine: FakeEngine, tmp_path: Path, bare: None, monkeypatch: pytest.MonkeyPatch) -> Patient:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "s3cret")
    return Patient(fake_engine, tmp_path)


def failed(checks: Mapping[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if check.status == "fail"]


async def test_where_all_is_well_every_check_is_ok_and_nothing_is_left(patient: Patient) -> None:
    patient.is_well()

    checks = await patient.checks()

    assert {check.status for check in checks.values()} == {"ok"}, checks
    assert [check.fix for check in checks.values() if check.fix] == []
    assert checks["agent"].found == "/usr/local/bin/claude, 2.1.330 (Claude Code)"
    assert "s3cret" not in repr(checks)
    assert not (patient.folder / "state").exists()
    assert patient.engine.calls[-1].argv[1] == "rm"


async def test_the_probe_gets_what_the_agent_would_get(patient: Patient) -> None:
    patient.is_well()

    await patient.checks(memory="1g", network="lan", ephemeral=False, ports=("8080:80",), secrets=("HOME",))

    run, exec_ = patient.engine.run_argv, patient.engine.agent_argv
    assert {f"--memory={1024**3}", "--network=lan", "--rm"} <= {*run}
    assert not any(word.startswith("--publish") for word in run), "a kept container may hold the port"
    assert {"--env=ANTHROPIC_API_KEY", "--env=CLAUDE_CONFIG_DIR=/container-runner/sessions"} <= {*exec_}
    assert exec_[-6:] == ("sh", "-c", PROBE, "sh", "claude", "version")
    assert patient.engine.stdin == b""


async def test_only_of_claude_the_version_is_asked(patient: Patient) -> None:
    patient.is_well(agent="/bin/agent", code=None, version=None)

    checks = await patient.checks(runtime=CommandRuntime(["agent", "--now"]))

    assert patient.engine.agent_argv[-2:] == ("agent", "-")
    assert checks["agent"].found == "/bin/agent"


@pytest.mark.parametrize(
    ("inside", "name", "status", "words"),
    [
        ({"agent": None, "code": None, "version": None}, "agent", "fail", "no 'claude' in the image"),
        ({"code": "1", "version": "SyntaxError"}, "agent", "fail", "fails with code 1: SyntaxError"),
        ({"workspace": "no"}, "workspace", "fail", "can not write"),
        ({"sessions": "no"}, "sessions", "fail", "can not write"),
        ({"home": "no"}, "box", "fail", "HOME"),
        ({"CapBnd": "00000000a80425fb"}, "box", "warn", "capabilities"),
        ({"NoNewPrivs": "0"}, "box", "warn", "privileges"),
        ({"Seccomp": "0"}, "box", "warn", "system call"),
        ({"root": "yes"}, "box", "warn", "image's files"),
        ({"network": "lo"}, "network", "fail", "no network interface"),
        ({"memory": "max"}, "limits", "warn", "no limit on memory"),
    ],
)
async def test_what_is_wrong_inside_has_a_check_with_a_fix(
    patient: Patient, inside: dict[str, str | None], name: str, status: str, words: str
) -> None:
    patient.is_well(**inside)

    checks = await patient.checks()

    assert checks[name].status == status
    assert words in checks[name].found
    assert checks[name].fix
    assert [check.name for check in checks.values() if check.status != "ok"] == [name]


async def test_a_workspace_that_is_not_writable_is_given_to_the_agents_user(patient: Patient) -> None:
    patient.is_well(workspace="no")

    checks = await patient.checks(user="1234:1234")

    assert str(checks["workspace"].fix).endswith(f"chown -R 1234:1234 {patient.folder}/work")


async def test_a_folder_that_is_everybodys_is_given_to_nobody(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SHARED", (f"{patient.folder}/work",))
    patient.is_well(workspace="no")

    checks = await patient.checks(user="1234:1234")

    assert "chown" not in str(checks["workspace"].fix)
    assert "--workspace" in str(checks["workspace"].fix)


@pytest.mark.parametrize(("runtime", "status"), [(ClaudeRuntime(), "warn"), (CommandRuntime(["agent"]), "ok")])
async def test_no_network_is_a_warning_to_who_asks_a_model(patient: Patient, runtime: Runtime, status: str) -> None:
    patient.is_well(network="lo")

    assert (await patient.checks(network="none", runtime=runtime))["network"].status == status


async def test_a_dead_daemon_is_named_and_the_rest_is_not_looked_at(patient: Patient) -> None:
    told = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
    patient.engine.fp.register(["docker", "--version"], stdout="Docker version 28.2.2")
    patient.answer("info", stdout={"ServerErrors": [told]}, returncode=1, stderr=told)

    checks = await patient.checks()

    assert failed(checks) == ["daemon"]
    assert told in checks["daemon"].found
    assert re.search("start docker|docker start|install docker|podman", str(checks["daemon"].fix))
    assert "ServerErrors" not in checks["daemon"].found
    assert {checks[name].status for name in ("image", "box", "limits")} == {"skip"}
    assert checks["credentials"].status == "ok"


async def test_an_engine_that_answers_in_riddles_is_no_crash(patient: Patient) -> None:
    patient.engine.fp.register(["docker", "--version"], stdout="Docker version 28.2.2")
    patient.answer("info", stdout="not JSON")

    checks = await patient.checks()

    assert failed(checks) == ["daemon"]
    assert "not JSON" in checks["daemon"].found


async def test_a_daemon_that_is_elsewhere_is_not_started_here(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    patient.engine.fp.register(["docker", "--version"], stdout="Docker version 28.2.2")
    patient.answer("info", returncode=1, stderr="Cannot connect to the Docker daemon at unix:///nowhere.")

    assert "unset DOCKER_HOST" in str((await patient.checks())["daemon"].fix)


@pytest.mark.parametrize(
    ("gid", "mode", "made"),
    [(0, 0o660, True), (1, 0o600, True), (1, 0o660, False)],
)
async def test_a_daemon_that_we_may_not_speak_to_has_a_group_or_gets_one(
    gid: int, mode: int, made: bool, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("container_runner.doctor.doctor._our_name", lambda: "me")
    monkeypatch.setattr("shutil.which", lambda name, **_: f"/usr/bin/{name}" if name == "sudo" else None)
    monkeypatch.setattr(
        "pathlib.Path.stat", lambda *_, **__: os.stat_result((0o140000 | mode, *[0] * 4, gid, *[0] * 4))
    )

    error = EnginePermissionError("You may not speak to the engine's daemon.")
    fix = str(without_daemon(error, engine()).fix)

    group = "docker" if made else grp.getgrgid(1).gr_name
    assert f"sudo usermod -aG {group} me && newgrp {group}" in fix
    assert ("sudo groupadd -f docker && sudo chgrp docker /var/run/docker.sock" in fix) == made


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
    monkeypatch.setattr("container_runner.doctor.doctor._has_systemd", lambda: systemd)
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
    monkeypatch.setattr("container_runner.doctor.doctor._has_systemd", lambda: systemd)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    error = EngineTimeoutError("It is silent.")

    # A client may ask the daemon even for its own version.
    for check in (without_daemon(error, engine()), without_engine(error, "auto")):
        assert start in str(check.fix)
        subprocess.run(["sh", "-n", "-c", str(check.fix)], check=True)
    assert without_engine(error, "podman").fix == error.next_step


async def test_the_list_of_packages_may_be_empty(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: {"ID": "debian"})

    fix = str((await patient.checks(engine="no-such-engine"))["engine"].fix)

    assert re.fullmatch(r"(sudo )?apt-get update && (sudo )?apt-get install podman|su - -c '.*'", fix)


async def test_an_engine_comes_before_an_image(patient: Patient) -> None:
    def prepare() -> tuple[ContainerRunner, ExecuteOptions]:
        raise ConfigError("--image", None, "an image")

    checks = [check async for check in examine(prepare, engine="no-such-engine")]

    assert [check.name for check in checks if check.status == "fail"] == ["engine", "image"]
    assert "image build --engine=no-such-engine && " in str(checks[1].fix)


async def test_crun_that_refuses_old_cgroups_gives_way_to_runc(patient: Patient) -> None:
    fp, told = patient.engine.fp, "Error: OCI runtime error: crun: cgroups in hybrid mode not supported"
    fp.register(["docker", "--version"], stdout="podman version 4.3.1")
    fp.register(["docker", "info", fp.any()], stdout="false false 4.3.1 /storage")
    fp.register(["docker", "info", fp.any()], stdout=json.dumps(podman_info("cpu", "memory", "pids")))
    fp.register(["docker", "info", fp.any()], stdout="false false 4.3.1 /storage")
    patient.answer("run", returncode=126, stderr=told)
    patient.is_well()

    checks = await patient.checks()

    assert failed(checks) == ["box"]
    assert "runc" in str(checks["box"].fix)
    assert 'runtime = "runc"' in str(checks["box"].fix)


async def test_no_engine_is_installed_by_the_systems_own_means(patient: Patient) -> None:
    checks = await patient.checks(engine="no-such-engine")

    assert failed(checks) == ["engine"]
    assert "no-such-engine" in checks["engine"].found
    assert "podman" in str(checks["engine"].fix)
    assert checks["configuration"].status == "skip"


async def test_docker_may_be_podman(patient: Patient) -> None:
    fp = patient.engine.fp
    fp.register(["docker", "--version"], stdout="podman version 5.4.2")
    fp.register(
        ["docker", "info", fp.any()],
        stdout="false true 5.4.2 /storage",
    )
    fp.register(["docker", "info", "--format={{json .}}"], stdout=json.dumps(podman_info("cpu", "memory", "pids")))
    patient.answer("version", stdout="{}")
    patient.answer("image", "inspect", returncode=125, stderr="Error: my/claude: image not known")

    checks = await patient.checks()

    assert checks["engine"].found == "podman 5.4.2, under the name docker"
    assert checks["rootless"].found.startswith("yes")
    assert checks["limits"].found.startswith("cgroup v2, rootless: memory, processes and processors")


@pytest.mark.parametrize(
    ("image", "fix"),
    [
        ("container-runner/claude", "container-runner image build --engine=docker"),
        ("container-runner/claude:latest", "container-runner image build --engine=docker"),
        ("container-runner/claude:1", "container-runner image build --tag=container-runner/claude:1 --engine=docker"),
        ("container-runner/codex", "container-runner image build codex --engine=docker"),
        ("container-runner/demo", "container-runner image build --tag=container-runner/demo --engine=docker"),
        ("my/codex", "container-runner image build --tag=my/codex --engine=docker"),
        ("mine", "container-runner image build --tag=mine --engine=docker"),
        ("ghcr.io/some/thing:1", "docker pull ghcr.io/some/thing:1"),
    ],
)
async def test_an_image_that_is_missing_is_built_or_pulled(patient: Patient, image: str, fix: str) -> None:
    patient.engine.fp.register(["docker", "--version"], stdout="Docker version 28.2.2")
    patient.answer("info", stdout=DOCKER_INFO)
    patient.answer("version", stdout=DOCKER_VERSION)
    patient.answer("image", "inspect", returncode=1, stderr=f"Error response from daemon: No such image: {image}")

    checks = await patient.checks(image=image)

    assert failed(checks) == ["image"]
    assert checks["image"].fix == fix
    assert checks["limits"].status == "ok", "as the engine says"
    assert checks["box"].status == "skip"


@pytest.mark.parametrize(
    ("stderr", "name", "fix"),
    [
        ('exec: "sh": executable file not found in $PATH', "tools", "container-runner image build"),
        ("network lan not found", "network", "docker network create lan"),
        ("something else", "box", "container-runner argv"),
    ],
)
async def test_a_box_that_does_not_start_fails_the_check_it_is_about(
    patient: Patient, stderr: str, name: str, fix: str
) -> None:
    patient.answer("run", returncode=127, stderr=f"docker: Error response from daemon: {stderr}")
    patient.is_well()

    checks = await patient.checks(network="lan")

    assert failed(checks) == [name]
    assert stderr in checks[name].found
    assert fix in str(checks[name].fix)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ConfigError("memory", "x", "a size"), "configuration"),
        (ConfigError("--image", None, "an image"), "image"),
        (ConfigError("agent.workspace", "/no/such/folder", "a path that exists"), "workspace"),
        (ConfigError("state_dir", "/x", "a folder"), "sessions"),
    ],
)
async def test_a_configuration_that_is_refused_still_lets_the_engine_be_looked_at(
    patient: Patient, error: ConfigError, name: str
) -> None:
    patient.engine.fp.register(["docker", "--version"], stdout="Docker version 28.2.2")
    patient.answer("info", stdout=DOCKER_INFO)
    patient.answer("version", stdout=DOCKER_VERSION)

    def prepare() -> tuple[ContainerRunner, ExecuteOptions]:
        raise error

    checks = {check.name: check async for check in examine(prepare)}

    assert failed(checks) == [name]
    assert checks[name].fix
    assert checks["daemon"].status == "ok"
    assert checks["limits"].status == "ok"


async def test_a_workspace_that_bits_alone_forbid_is_named_before_anything_is_started(patient: Patient) -> None:
    patient.engine.fp.register(["docker", "--version"], stdout="Docker version 28.2.2")
    patient.answer("info", stdout=DOCKER_INFO)
    patient.answer("version", stdout=DOCKER_VERSION)
    patient.answer("image", "inspect", stdout="sha256:0123456789abcdef")
    runner, options = request(patient.folder, user="1234:1234")
    (patient.folder / "work").chmod(0o755)

    checks = {check.name: check async for check in examine(lambda: (runner, options))}

    assert failed(checks) == ["workspace"]
    assert (checks["image"].status, checks["box"].status) == ("ok", "skip")
    assert str(checks["workspace"].fix).endswith(f"chown -R 1234:1234 {patient.folder}/work")


@pytest.mark.parametrize(
    ("mode", "owner", "fix"),
    [
        (0o555, 0, "chown -R 1234:1234 {}"),
        (0o555, 1234, "chmod -R u+rwX {}"),
        (None, 1234, "mkdir -p {0} && {sudo}chown"),
    ],
)
async def test_a_folder_is_made_given_or_opened(
    mode: int | None, owner: int, fix: str, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient.is_well()
    runner, options = request(patient.folder, user="1234:1234")
    work = patient.folder / "work"
    if mode is None:
        work.rmdir()
    else:
        work.chmod(mode)
        if os.geteuid() != 0:
            pytest.skip("only root can give folders away")
        os.chown(work, owner, owner)

    checks = {check.name: check async for check in examine(lambda: (runner, options))}

    assert failed(checks) == ["workspace"]
    sudo = str(checks["workspace"].fix).partition("&& ")[2].partition("chown")[0]
    assert fix.format(work, sudo=sudo) in str(checks["workspace"].fix)


@pytest.mark.parametrize(
    ("dialect", "port", "status"),
    [(PODMAN_ROOTLESS, "80", "fail"), (PODMAN_ROOTLESS, "8080:80", "ok"), (DOCKER, "80", "ok")],
)
def test_a_port_that_only_root_may_open(
    dialect: Dialect, port: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "container_runner.doctor.doctor._first_port", lambda engine: 1024 if engine.dialect.keep_id else 0
    )
    runner, options = request(tmp_path, ports=(port,))
    said = {name: (value,) for name, value in INSIDE.items()}

    checks = {check.name: check for check in check_inside(runner, options, engine(dialect), {}, said)}

    assert checks["network"].status == status
    assert ("ip_unprivileged_port_start=80" in str(checks["network"].fix)) == (status == "fail")


async def test_a_home_is_no_workspace_and_the_line_says_where_to_name_one(patient: Patient) -> None:
    patient.is_well()
    runner, options = request(patient.folder)
    options = attrs.evolve(options, agent=Agent(name="bot", workspace=patient.folder / "home"))

    checks = {check.name: check async for check in examine(lambda: (runner, options))}

    assert failed(checks) == ["workspace"]
    assert checks["workspace"].found == f"{patient.folder}/home can not be the workspace"
    assert str(checks["workspace"].fix).startswith("container-runner doctor --workspace=…    # a folder that is not")


# The script


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
    assert list(tmp_path.iterdir()) == []
