"""The checks of `doctor`: what each makes of what an engine, an image and a machine say."""

from __future__ import annotations

import grp
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from container_runner import Agent, ClaudeRuntime, CommandRuntime, ContainerRunner, ExecuteOptions
from container_runner.agents import Runtime
from container_runner.doctor.checks import (
    NAMES,
    Check,
    without_daemon,
)
from container_runner.doctor.doctor import examine
from container_runner.doctor.inside import PROBE
from container_runner.errors import (
    ConfigError,
    EnginePermissionError,
)
from container_runner.testing import FakeEngine
from tests.doctor.machines import DOCKER_INFO, DOCKER_VERSION, INSIDE, engine, podman_info, request


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
    (client,) = (call for call in patient.engine.calls if call.argv == patient.engine.agent_argv)
    assert client.returncode == 0  # so --rm has removed it


async def test_the_probe_gets_what_the_agent_would_get(patient: Patient) -> None:
    patient.is_well()

    await patient.checks(memory="1g", network="lan", ephemeral=False, ports=("8080:80",), secrets=("HOME",))

    run = patient.engine.run_argv
    assert run == patient.engine.agent_argv
    assert {f"--memory={1024**3}", "--network=lan", "--rm"} <= {*run}
    assert not any(word.startswith("--publish") for word in run), "a kept container may hold the port"
    assert "--env=CLAUDE_CONFIG_DIR=/container-runner/sessions" in run
    assert {"ANTHROPIC_API_KEY", "HOME"} <= patient.engine.variables.keys()
    assert run[-6:] == ("sh", "-c", PROBE, "sh", "claude", "version")
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
        ({"sealed": "no"}, "box", "warn", "can read PID 1"),
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
    monkeypatch.setattr("container_runner.doctor.advice.SHARED", (f"{patient.folder}/work",))
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
    patient.engine.fp.register(["docker", "--version"], stdout="Docker version 28.2.2, build e6534b4")
    patient.answer("info", stdout={"ServerErrors": [told]}, returncode=1, stderr=told)

    checks = await patient.checks()

    assert failed(checks) == ["daemon"]
    assert told in checks["daemon"].found
    assert re.search("start docker|docker start|install docker|podman", str(checks["daemon"].fix))
    assert "ServerErrors" not in checks["daemon"].found
    assert {checks[name].status for name in ("image", "box", "limits")} == {"skip"}
    assert checks["credentials"].status == "ok"


async def test_an_engine_that_answers_in_riddles_is_no_crash(patient: Patient) -> None:
    patient.engine.fp.register(["docker", "--version"], stdout="Docker version 28.2.2, build e6534b4")
    patient.answer("info", stdout="not JSON")

    checks = await patient.checks()

    assert failed(checks) == ["daemon"]
    assert "not JSON" in checks["daemon"].found


async def test_a_daemon_that_is_elsewhere_is_not_started_here(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    patient.engine.fp.register(["docker", "--version"], stdout="Docker version 28.2.2, build e6534b4")
    patient.answer("info", returncode=1, stderr="Cannot connect to the Docker daemon at unix:///nowhere.")

    assert "unset DOCKER_HOST" in str((await patient.checks())["daemon"].fix)


async def test_a_daemon_that_wants_certificates_is_not_said_to_be_down(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://there:2376")
    patient.engine.fp.register(["docker", "--version"], stdout="Docker version 28.2.2, build e6534b4")
    said = "Error response from daemon: Client sent an HTTP request to an HTTPS server."
    patient.answer("info", returncode=1, stderr=said)

    assert "DOCKER_CERT_PATH" in str((await patient.checks())["daemon"].fix)


@pytest.mark.parametrize(
    ("gid", "mode", "made"),
    [(0, 0o660, True), (1, 0o600, True), (1, 0o660, False)],
)
async def test_a_daemon_that_we_may_not_speak_to_has_a_group_or_gets_one(
    gid: int, mode: int, made: bool, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("container_runner.doctor.advice._our_name", lambda: "me")
    monkeypatch.setattr("shutil.which", lambda name, **_: f"/usr/bin/{name}" if name == "sudo" else None)
    monkeypatch.setattr(
        "pathlib.Path.stat", lambda *_, **__: os.stat_result((0o140000 | mode, *[0] * 4, gid, *[0] * 4))
    )

    error = EnginePermissionError("You may not speak to the engine's daemon.")
    fix = str(without_daemon(error, engine()).fix)

    group = "docker" if made else grp.getgrgid(1).gr_name
    assert f"sudo usermod -aG {group} me && newgrp {group}" in fix
    assert ("sudo groupadd -f docker && sudo chgrp docker /var/run/docker.sock" in fix) == made


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
    patient.engine.fp.register(["docker", "--version"], stdout="Docker version 28.2.2, build e6534b4")
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
        ("something else", "box", "its log may say more"),
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
    patient.engine.fp.register(["docker", "--version"], stdout="Docker version 28.2.2, build e6534b4")
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
    patient.engine.fp.register(["docker", "--version"], stdout="Docker version 28.2.2, build e6534b4")
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


async def test_a_home_is_no_workspace_and_the_line_says_where_to_name_one(patient: Patient) -> None:
    patient.is_well()
    runner, options = request(patient.folder)
    options = attrs.evolve(options, agent=Agent(name="bot", workspace=patient.folder / "home"))

    checks = {check.name: check async for check in examine(lambda: (runner, options))}

    assert failed(checks) == ["workspace"]
    assert checks["workspace"].found == f"{patient.folder}/home can not be the workspace"
    assert str(checks["workspace"].fix).startswith("container-runner doctor --workspace=…    # a folder that is not")
