"""The box, as its inmate sees it. What the engine was told is one thing; this is what it did."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from container_runner import ConfigError
from tests.integration.engines import RealEngine
from tests.integration.runs import ON_ROOTFUL, Box, status


def test_the_agent_is_the_workspaces_owner_and_has_no_privileges(box: Box) -> None:
    found = status(box.sh("cat /proc/self/status"))

    uid, gid = map(str, box.engine.owner)
    assert found["Uid"] == [uid] * 4
    assert found["Gid"] == [gid] * 4
    assert {*found["Groups"]} <= {gid}
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found[kind][0], 16) == 0, kind
    assert found["NoNewPrivs"] == ["1"]
    assert found["Seccomp"] == ["2"]


@ON_ROOTFUL  # root runs these tests, so such a box has sessions of root's, which rootless podman may not enter
def test_root_on_request_has_no_capabilities_either(box: Box) -> None:
    found = status(box.sh("cat /proc/self/status", user="root", workspace=None))

    assert found["Uid"] == ["0"] * 4
    assert int(found["CapEff"][0], 16) == int(found["CapBnd"][0], 16) == 0
    assert found["NoNewPrivs"] == ["1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of root's")
def test_a_workspace_of_roots_is_refused_before_anything_is_started(box: Box) -> None:
    os.chown(box.workspace, 0, 0)

    with pytest.raises(ConfigError, match="chown -R 1000:1000"):
        box.run("edit a b")

    assert not box.state.exists()
    assert box.containers() == []


@ON_ROOTFUL
def test_a_fork_bomb_stays_in_the_box(box: Box) -> None:
    bomb = "(i=0; while [ $i -lt 100 ]; do sleep 1 & i=$((i + 1)); done)"
    # Without a fork until PID 1 has collected them, or the agent itself could not go on.
    rest = "read -r t r </proc/uptime; e=$((${t%.*} + 6)); while [ ${t%.*} -lt $e ]; do read -r t r </proc/uptime; done"

    assert "an't fork" in box.sh(f"{bomb}; {rest}", pids_limit=40)


def test_only_the_workspace_home_and_tmp_can_be_written(box: Box) -> None:
    folders = ["/", "/bin", "/etc", "/usr/local", "/container-runner", "/dev", "/sys", "/proc/sys/kernel"]
    own = ["/workspace", "/tmp", '"$HOME"', "/container-runner/sessions"]
    look = "; ".join(f"(echo x >{folder}/made) 2>/dev/null && echo {folder}" for folder in (*folders, *own))

    assert box.sh(f"HOME=$HOME; {look}").splitlines() == [
        "/workspace",
        "/tmp",
        "/container-runner/home",
        "/container-runner/sessions",
    ]
    assert (box.workspace / "made").stat().st_uid == box.engine.owner[0]


def test_a_read_only_workspace_can_be_read_and_not_written(box: Box) -> None:
    (box.workspace / "notes.txt").write_text("read me\n")

    told = box.sh("cat notes.txt; echo x >notes.txt; rm notes.txt", workspace_mode="ro")

    assert told.startswith("read me\n")
    assert told.lower().count("read-only file system") == 2
    assert (box.workspace / "notes.txt").read_text() == "read me\n"


@pytest.mark.parametrize(("network", "interfaces"), [("none", {"lo"}), ("bridge", {"lo", "eth0"})])
def test_a_network_has_its_interfaces_and_no_other(box: Box, network: str, interfaces: set[str]) -> None:
    found = box.sh("tail -n +3 /proc/net/dev | cut -d: -f1", network=network).split()

    assert {
        name for name in found if not name.startswith(("tunl", "sit", "gre", "erspan", "ip6", "ip_vti"))
    } == interfaces


def test_no_namespace_is_shared_with_the_host(box: Box) -> None:
    names = ["ipc", "mnt", "net", "pid", "uts"]

    found = box.sh(f"cd /proc/self/ns; for name in {' '.join(names)}; do readlink $name; done").split()

    ours = [str(Path(f"/proc/self/ns/{name}").readlink()) for name in names]
    assert len(found) == len(names)
    assert not {*found} & {*ours}


def test_mounts_are_those_that_were_planned_and_nothing_in_them_is_setuid_or_a_device(box: Box) -> None:
    mounts = {}
    for line in box.sh("cat /proc/self/mountinfo").splitlines():
        fields = line.split()
        mounts[fields[4]] = {*fields[5].split(",")}

    assert "ro" in mounts["/"]
    for target in ("/tmp", "/container-runner/home", "/container-runner/run"):
        assert {"rw", "nosuid", "nodev"} <= mounts[target]
    assert "rw" in mounts["/workspace"]
    engines_own = ("/proc", "/sys", "/dev", "/etc", "/run")
    assert {target for target in mounts if not target.startswith(engines_own)} == {
        "/", "/tmp", "/workspace", "/container-runner/home", "/container-runner/run", "/container-runner/sessions",
        *(f"/container-runner/sessions/{name}" for name in ("projects", "projects/-workspace", "tasks")),
    }  # fmt: skip


def test_there_is_no_socket_of_an_engine(box: Box) -> None:
    assert box.sh("find / -xdev -type s; ls /run /var/run 2>/dev/null | grep -e docker -e podman -e containerd") == ""


def test_core_dumps_are_off_for_good(box: Box) -> None:
    assert box.sh("ulimit -Hc; ulimit -Sc") == "0\n0"


def test_the_agent_can_not_touch_pid_1(box: Box) -> None:
    """It has the agent's uid, but the kernel shields the first process of a namespace, and what nobody may read."""
    told = box.sh(
        "kill -KILL 1; kill -STOP 1; sleep 1; (echo x >/proc/1/fd/1) && echo written; "
        "cat /proc/1/environ && echo read; "
        "(: </proc/1/fd/0) && echo opened; ls /proc/1/fd/ && echo listed; grep State /proc/1/status"
    )

    assert not {"written", "read", "opened", "listed"} & {*told.splitlines()}
    assert told.lower().count("permitted") + told.lower().count("denied") >= 4
    assert "S (sleeping)" in told


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_no_port_is_open_that_was_not_asked_for(box: Box) -> None:
    async with box.at_work("sleep 60", network="bridge") as container:
        assert ports(box.engine, container) == {}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_open_port_listens_on_this_machine_alone(box: Box) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]

    async with box.at_work("sleep 60", network="bridge", ports=[f"{number}:80"]) as container:
        assert ports(box.engine, container) == {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(number)}]}


def ports(engine: RealEngine, container: str) -> object:
    (shown,) = json.loads(engine.run("inspect", container).stdout)
    found = shown["NetworkSettings"]["Ports"] or {}
    return {port: bound for port, bound in found.items() if bound}
