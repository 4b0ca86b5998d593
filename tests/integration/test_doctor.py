"""`doctor` with real engines: where all is well, and on each setup that is broken, its advice followed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.integration.engines import OWN, RealEngine
from tests.integration.runs import COMMAND, ON_DOCKER, ON_OWN_ROOTFUL, Box, on

pytestmark = on(*OWN)  # what is ours, whatever the engine's age


def doctor(box: Box, *flags: str, environ: Mapping[str, str] | None = None) -> tuple[int, dict[str, dict[str, str]]]:
    """Its exit code, and its checks by their names."""
    own = [
        f"--workspace={box.workspace}",
        f"--state-dir={box.state}",
        f"--engine={box.engine.binary}",
        f"--image={box.engine.images.tiny}",
        "--agent=tester",
        "--credentials=none",
    ]
    given = {flag.partition("=")[0] for flag in flags}
    words = [COMMAND, "doctor", "--json", *flags, *(flag for flag in own if flag.partition("=")[0] not in given)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **(environ or {})}
    )
    assert done.stderr == ""
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def failed(checks: Mapping[str, Mapping[str, str]]) -> list[str]:
    return [name for name, check in checks.items() if check["status"] == "fail"]


def test_where_a_run_works_it_says_so_and_leaves_nothing(box: Box) -> None:
    code, checks = doctor(box)

    assert (code, failed(checks)) == (0, []), checks
    assert "skip" not in {check["status"] for check in checks.values()}
    assert checks["engine"]["found"].startswith("docker" if box.engine.is_docker else "podman")
    assert checks["agent"]["found"].startswith("/usr/local/bin/claude, ")
    assert str(box.engine.owner[0]) in checks["workspace"]["found"]
    assert checks["rootless"]["found"].startswith("yes" if box.engine.name == "podman-rootless" else "no")
    assert list(box.workspace.iterdir()) == []
    assert not box.state.exists()
    assert box.containers() == []


@ON_DOCKER
def test_of_a_workspace_that_is_carried_to_the_probe_no_run_is_left(box: Box) -> None:
    code, checks = doctor(box, "--carried")

    assert (code, failed(checks)) == (0, []), checks
    (shadow,) = box.state.glob("carried/*/shadow.git")
    words = ["git", f"--git-dir={shadow}", "for-each-ref", "--format=%(refname)", "refs/container-runner/"]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == ""


@on("podman-rootless")
def test_limits_that_do_not_hold_are_named(box: Box) -> None:
    if not Path("/sys/fs/cgroup/memory").is_dir():
        pytest.skip("this machine has cgroup v2, where the limits of rootless podman hold")
    code, checks = doctor(box)

    assert code == 0
    assert checks["limits"]["status"] == "warn"
    assert "memory, processes, processors" in checks["limits"]["found"]
    has_systemd = Path("/run/systemd/system").is_dir()
    assert ("unified_cgroup_hierarchy" if has_systemd else "as root") in checks["limits"]["fix"]


@ON_OWN_ROOTFUL
def test_limits_that_hold_are_measured(box: Box) -> None:
    assert doctor(box, "--memory=64m", "--pids-limit=99")[1]["limits"]["status"] == "ok"


def test_an_image_that_is_not_there(box: Box) -> None:
    code, checks = doctor(box, "--image=container-runner-test/no-such-image")

    assert (code, failed(checks)) == (1, ["image"])
    assert "image build --tag=container-runner-test/no-such-image" in checks["image"]["fix"]


def test_an_image_without_a_shell(box: Box) -> None:
    image = "container-runner-test/no-shell"
    # An image of one file that is no shell.
    archive = subprocess.run(["tar", "-c", "-C", "/etc", "hostname"], capture_output=True, check=True).stdout
    subprocess.run([box.engine.binary, "import", "-", image], input=archive, capture_output=True, check=True)
    try:
        code, checks = doctor(box, f"--image={image}")
    finally:
        box.engine.run("rmi", "--force", image, check=False)

    assert (code, failed(checks)) == (1, ["tools"])
    assert "shell" in checks["tools"]["found"]
    assert "image build" in checks["tools"]["fix"]
    assert box.containers() == []


@ON_OWN_ROOTFUL
def test_an_agent_that_the_image_lacks(box: Box) -> None:
    code, checks = doctor(box, "--command=no-such-agent --fast")

    assert (code, failed(checks)) == (1, ["agent"])
    assert "'no-such-agent'" in checks["agent"]["found"]


def test_a_workspace_that_is_not_the_agents_is_given_to_it_by_the_line_that_is_shown(box: Box) -> None:
    box.workspace.chmod(0o755)
    if os.getuid() == 0:
        os.chown(box.workspace, 4321, 4321)
    user = f"{box.engine.owner[0]}:{box.engine.owner[1]}"
    flags = [] if box.engine.name == "podman-rootless" and os.getuid() else [f"--user={user}"]
    if os.getuid() != 0:
        box.workspace.chmod(0o555)
        pytest.skip("only root can give folders away")

    code, checks = doctor(box, *flags)
    assert (code, failed(checks)) == (1, ["workspace"])
    subprocess.run(["sh", "-c", checks["workspace"]["fix"]], check=True)

    code, checks = doctor(box, *flags)
    assert (code, failed(checks)) == (0, [])


@ON_OWN_ROOTFUL  # the others live with mounts of their own
def test_a_workspace_on_a_file_system_that_is_read_only(box: Box) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    subprocess.run(["mount", "--bind", box.workspace, box.workspace], check=True)
    try:
        remounted = ["mount", "-o", "remount,bind,ro", str(box.workspace)]
        subprocess.run(remounted, check=True)
        code, checks = doctor(box)
        assert (code, failed(checks)) == (1, ["workspace"])

        subprocess.run(["sh", "-c", checks["workspace"]["fix"]], check=True)
        assert doctor(box)[0] == 0
    finally:
        subprocess.run(["umount", box.workspace], check=True)


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("mode", [None, 0o555])
def test_a_workspace_that_is_not_there_or_is_closed_passes_after_one_line(mode: int | None, box: Box) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give folders away")
    if mode is None:
        box.workspace.rmdir()
    else:
        box.workspace.chmod(mode)
    code, checks = doctor(box)
    assert (code, failed(checks)) == (1, ["workspace"])

    subprocess.run(["sh", "-c", checks["workspace"]["fix"]], check=True)

    assert doctor(box)[0] == 0


@on("podman-rootless")
def test_a_port_of_roots_is_told_before_a_run_fails(box: Box) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80:
        pytest.skip("on this machine everybody may open the port")
    code, checks = doctor(box, "--port=80")

    assert (code, failed(checks)) == (1, ["network"])
    assert "ip_unprivileged_port_start=80" in checks["network"]["fix"]


def test_a_network_that_does_not_exist_is_made_by_the_line_that_is_shown(box: Box) -> None:
    code, checks = doctor(box, "--network=cr-doctor-test")
    assert (code, failed(checks)) == (1, ["network"])

    subprocess.run(["sh", "-c", checks["network"]["fix"]], check=True, capture_output=True)
    try:
        assert failed(doctor(box, "--network=cr-doctor-test")[1]) == []
    finally:
        box.engine.run("network", "rm", "cr-doctor-test")


@ON_DOCKER
def test_a_daemon_that_is_dead(box: Box) -> None:
    dead = {"DOCKER_HOST": f"unix://{box.folder}/no-socket"}
    code, checks = doctor(box, "--engine=docker", environ=dead)

    assert (code, failed(checks)) == (1, ["daemon"])
    assert "unset DOCKER_HOST" in checks["daemon"]["fix"]
    assert checks["box"]["status"] == "skip"


def test_a_daemon_that_died_and_is_started_again(private_docker: Callable[[], RealEngine], workspace: Path) -> None:
    box = Box.make(private_docker(), workspace)
    assert doctor(box)[0] == 0

    os.kill(box.engine.daemon_pid, signal.SIGKILL)
    code, checks = doctor(box)

    assert (code, failed(checks)) == (1, ["daemon"])
    assert re.search("docker start|start docker|dockerd", checks["daemon"]["fix"])
    box.engine.restart_daemon()
    assert doctor(box)[0] == 0


@ON_DOCKER
def test_a_machine_without_an_engine(box: Box) -> None:
    code, checks = doctor(box, "--engine=auto", environ={"PATH": str(box.folder), "CONTAINER_RUNNER_ENGINE": ""})

    assert (code, failed(checks)) == (1, ["engine"])
    assert checks["engine"]["fix"]


@on("podman")
def test_podman_under_the_name_of_docker_is_seen_through(box: Box) -> None:
    alias = box.folder / "docker"
    alias.symlink_to(box.engine.binary)

    code, checks = doctor(box, f"--engine={alias}")

    assert code == 0
    assert checks["engine"]["found"].startswith("podman ")
    assert "under the name docker" in checks["engine"]["found"]


@ON_DOCKER
def test_a_login_that_is_missing(box: Box) -> None:
    code, checks = doctor(
        box,
        "--credentials=env",
        environ={"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_OAUTH_TOKEN": "", "HOME": str(box.folder)},
    )
    assert (code, failed(checks)) == (1, ["credentials"])
    assert checks["credentials"]["fix"].startswith("export ANTHROPIC_API_KEY=")

    assert doctor(box, "--credentials=env", environ={"ANTHROPIC_API_KEY": "word"})[0] == 0
