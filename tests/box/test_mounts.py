"""What of the host is mounted, and what never is."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from container_runner.agents.runtime import Credentials
from container_runner.box import script, sources
from container_runner.box.mounts import (
    TMP_SIZE,
    ContainerMounts,
    build_container_mounts,
    mount_table,
    prepare_sessions,
    recheck,
)
from container_runner.box.sources import resolve_source, resolve_workspace
from container_runner.box.user import User
from container_runner.config.container import ContainerConfig
from container_runner.config.values import Mount, Tmpfs
from container_runner.errors import ConfigError, StateError
from container_runner.options import Agent

ME = User(os.getuid(), os.getgid())
CREDENTIALS = Credentials(names=("API_KEY",), file="~/.agent/login.json", target="/container-runner/sessions/login")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of our own, so that no test depends on what the real one holds."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


def build(
    tmp_path: Path,
    workspace: Path | None = None,
    environ: tuple[str, ...] = (),
    state: Path | None = None,
    kept: tuple[str, ...] | None = None,
    **config: Any,
) -> ContainerMounts:
    return build_container_mounts(
        Agent(name="bot", workspace=workspace),
        ContainerConfig(image="i", **config),
        state or tmp_path / "state",
        user=ME,
        credentials=CREDENTIALS,
        kept=kept,
        environ=environ,
    )


def refused(field: str, call: Any, *arguments: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert caught.value.field == field
    return caught.value


# What is mounted


def test_workspace_sessions_and_volumes_in_this_order(tmp_path: Path, workspace: Path) -> None:
    (tmp_path / "data").mkdir()

    found = build(tmp_path, workspace, volumes=[f"{tmp_path}/data:/data:ro"])

    assert found.mounts == (
        Mount(str(workspace), "/workspace"),
        Mount(str(tmp_path / "state/sessions/bot"), "/container-runner/sessions"),
        Mount(str(tmp_path / "data"), "/data", read_only=True),
    )


def test_what_is_writable_in_the_container_and_gone_with_it(tmp_path: Path, workspace: Path) -> None:
    found = build(tmp_path, workspace, tmpfs=["/cache:size=1m,exec"])

    assert [tmpfs.target for tmpfs in found.tmpfs] == [
        *("/tmp", "/container-runner/home", "/container-runner/run", "/cache")
    ]
    assert {tmpfs.executable for tmpfs in found.tmpfs} == {True}
    assert found.tmpfs[2].size > script.PROMPT_LIMIT


def test_without_a_workspace_there_is_a_scratch_folder(tmp_path: Path) -> None:
    assert Tmpfs("/workspace", size=TMP_SIZE, executable=True) in build(tmp_path).tmpfs


def test_nothing_is_created(tmp_path: Path, workspace: Path) -> None:
    before = sorted(tmp_path.rglob("*"))

    build(tmp_path, workspace)

    assert sorted(tmp_path.rglob("*")) == before


def test_a_read_only_workspace(tmp_path: Path, workspace: Path) -> None:
    assert build(tmp_path, workspace, workspace_mode="ro").mounts[0] == Mount(str(workspace), "/workspace", True)


def test_sources_are_resolved(tmp_path: Path, workspace: Path) -> None:
    (tmp_path / "link").symlink_to(workspace)

    assert build(tmp_path, tmp_path / "link").mounts[0].source == str(workspace)
    assert build(tmp_path, tmp_path / "home/../workspace").mounts[0].source == str(workspace)


def test_the_state_folder_inside_the_workspace_is_hidden(tmp_path: Path, workspace: Path) -> None:
    found = build(tmp_path, workspace, state=workspace / ".state/here")

    state = workspace / ".state/here"
    assert found.mounts[1:3] == (
        Mount(str(workspace / ".state"), "/workspace/.state"),
        Mount(str(state / "empty"), "/workspace/.state/here", True),
    )
    assert prepare_sessions(state, "bot", ME)
    assert [*(state / "empty").iterdir()] == []


# What never is

SYSTEM = ["/", "/etc", "/etc/ssl", "/usr", "/usr/lib", "/dev", "/proc", "/sys", "/bin", "/var", "/boot", "/run"]


@pytest.mark.parametrize("path", [path for path in SYSTEM if Path(path).exists()])
def test_places_of_the_system_and_what_holds_them_are_refused(path: str) -> None:
    refused("volumes[0]", resolve_source, path, "volumes[0]")


PRIVATE = [
    ".ssh",
    ".ssh/id_ed25519",
    ".aws",
    ".gnupg",
    ".kube",
    ".docker",
    ".config",
    ".config/gh",
    ".azure",
    ".netrc",
    ".claude",
    ".claude.json",
    ".codex",
    ".gemini",
    ".local/share/containers",
    ".local/share",
    ".local",
    "",
    "..",
]


@pytest.mark.parametrize("path", PRIVATE)
def test_private_places_of_the_home_and_what_holds_them_are_refused(home: Path, path: str) -> None:
    for name in (".ssh", ".local/share/containers"):
        (home / name).mkdir(parents=True)
    place = home / path
    if not place.exists():
        place.mkdir(parents=True)

    refused("volumes[0]", resolve_source, place, "volumes[0]")
    refused("volumes[0]", resolve_source, f"~/{path}", "volumes[0]")


@pytest.mark.skipif(os.getuid() != 0, reason="only root could mount somebody else's home")
def test_to_root_the_homes_of_others_are_private_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HOME is root's, or whatever sudo has left in it."""
    for name in ("people/alice/.ssh", "people/alice/project", "people/bob/project", "service/.ssh"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "people/carol/.claude").mkdir(parents=True)
    listed = [
        ("root", 0, "/"),
        ("alice", 1000, "people/alice"),
        ("bob", 1001, "people/bob"),
        ("carol", 1002, "people/carol"),
        ("daemon", 2, "service"),
    ]
    users = [pwd.struct_passwd((name, "x", uid, uid, "", str(tmp_path / home), "")) for name, uid, home in listed]
    monkeypatch.setattr(pwd, "getpwall", lambda: users)

    for place in ("people/alice", "people/alice/.ssh", "people"):
        with pytest.raises(ConfigError, match="alice"):
            resolve_source(tmp_path / place, "agent.workspace")
    with pytest.raises(ConfigError, match="carol"):
        resolve_source(tmp_path / "people/carol", "agent.workspace")
    for place in ("people/alice/project", "people/bob", "service"):
        resolve_source(tmp_path / place, "agent.workspace")


@pytest.mark.parametrize("path", ["project", ".sshd", ".configs", ".local/share/mine", ".local/bin", ".cache"])
def test_other_places_of_the_home_are_not(home: Path, path: str) -> None:
    (home / path).mkdir(parents=True)

    assert resolve_source(f"~/{path}", "x") == home / path


@pytest.mark.parametrize("target", ["/etc", "/", "/proc/self"])
def test_a_link_to_a_refused_place_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "innocent").symlink_to(target)

    refused("x", resolve_source, tmp_path / "innocent", "x")
    refused("agent.workspace", resolve_workspace, Agent(name="a", workspace=tmp_path / "innocent"))


@pytest.mark.parametrize("name", ["docker.sock", "podman.sock", "containerd.sock"])
def test_an_engines_socket_is_refused_wherever_it_is_and_behind_a_link(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        (tmp_path / "harmless").symlink_to(name)

        assert "socket" in refused("x", resolve_source, tmp_path / name, "x").next_step
        refused("x", resolve_source, tmp_path / "harmless", "x")


@pytest.mark.parametrize("place", ["", "a", "a/b/c"])
def test_a_folder_in_which_an_engine_listens_is_refused(
    tmp_path: Path, workspace: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / place).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(workspace / place)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("podman.sock")

        assert "podman.sock" in refused("agent.workspace", build, tmp_path, workspace).next_step
        with pytest.raises(ConfigError, match=r"volumes\[0\]"):
            build(tmp_path, volumes=[f"{workspace}:/data:ro"])


def test_sockets_are_looked_for_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "1/2/3/4"
    deep.mkdir(parents=True)
    (tmp_path / "docker.sock").touch()  # a name alone is nothing
    (tmp_path / "away").symlink_to(deep)
    with socket.socket(socket.AF_UNIX) as near, socket.socket(socket.AF_UNIX) as far:
        for folder, listening in ((deep.parent, near), (deep, far)):
            monkeypatch.chdir(folder)
            listening.bind("x")

    assert [*sources.sockets(tmp_path)] == [deep.parent / "x"]


@pytest.mark.parametrize("source", ["missing", "dangling", "loop", "file/below"])
def test_a_source_that_is_not_there_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()

    refused("volumes[3]", resolve_source, tmp_path / source, "volumes[3]")


def test_a_workspace_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert refused("agent.workspace", resolve_workspace, Agent(name="a", workspace=tmp_path / "file")).allowed == (
        "a folder"
    )


def test_a_folder_of_everybodys_files_is_no_workspace(tmp_path: Path, workspace: Path) -> None:
    workspace.chmod(0o1777)
    (workspace / "own").mkdir()

    error = refused("agent.workspace", build, tmp_path, workspace)
    assert str(error) == (
        f"agent.workspace must be a folder of the agent's own, such as a new one in {workspace}, where other programs "
        f"have files and sockets; got {str(workspace)!r}."
    )
    build(tmp_path, workspace / "own")


@pytest.mark.parametrize("below", ["", "sessions", "sessions/other"])
def test_the_state_folder_is_no_workspace_and_no_volume(tmp_path: Path, workspace: Path, below: str) -> None:
    state = tmp_path / "state"
    (state / below).mkdir(parents=True, exist_ok=True)

    refused("agent.workspace", build, tmp_path, state / below)
    with pytest.raises(ConfigError) as caught:
        build(tmp_path, workspace, volumes=[f"{state / below}:/x"])
    assert caught.value.field == "volumes[0]"


def test_a_volume_that_holds_the_state_folder_is_refused(tmp_path: Path, workspace: Path) -> None:
    (tmp_path / "holder").mkdir()
    with pytest.raises(ConfigError):
        build(tmp_path, workspace, state=tmp_path / "holder/state", volumes=[f"{tmp_path}/holder:/x"])


# What the kernel is to say of them in the container

TABLE = """\
22 28 0:20 / /sys rw,nosuid - sysfs sysfs rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
31 28 254:2 /@home /home rw,relatime - btrfs /dev/vdb rw,subvol=/@home
32 31 0:50 / /home/me/project/node_modules rw - tmpfs tmpfs rw
33 31 0:51 / /home/me/project\\040two rw - tmpfs tmpfs rw
34 28 254:3 /data /srv/ro ro,relatime - ext4 /dev/vdc rw
35 28 254:4 / /srv/over rw - ext4 /dev/vdd rw
36 28 254:5 / /srv/over rw - ext4 /dev/vde rw
37 28 254:6 /a\\134b /srv/back\\134slash rw - ext4 /dev/vdf rw
38 28 0:60 / /srv/rw\\011tab rw - tmpfs tmpfs rw
"""
"""As a machine's /proc/self/mountinfo has it."""


def kernel(*mounts: Mount, table: str = TABLE, **others: Any) -> list[str]:
    fields = {"tmpfs": (), **others}
    return ContainerMounts(mounts=mounts, credentials_by_name=False, **fields).in_kernel(table)


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("/opt/tools", "rw 254:1 /opt/tools"),  # of the root file system
        ("/", "rw 254:1 /"),
        ("/home", "rw 254:2 /@home"),
        ("/home/me/work", "rw 254:2 /@home/me/work"),  # not of the root's, though that holds it too
        ("/home/me/project/node_modules", "rw 0:50 /"),  # a mount itself
        ("/home/me/project/node_modules/x", "rw 0:50 /x"),
        ("/home/me/project/node_modules.old", "rw 254:2 /@home/me/project/node_modules.old"),  # beside one
        ("/homes", "rw 254:1 /homes"),
        ("/sys/fs", "rw 0:20 /fs"),  # mounted before the root was, and moved to it
        ("/home/me/project two/x", "rw 0:51 /x"),
        ("/srv/back\\slash/x y", "rw 254:6 /a\\134b/x\\040y"),
        ("/srv/over/x", "rw 254:5 /x"),  # the later mount hides the earlier one
        ("/srv/ro/x", "ro 254:3 /data/x"),  # a bind of a read-only mount is read-only
    ],
)
def test_a_bind_is_the_place_in_its_file_system(source: str, place: str) -> None:
    assert kernel(Mount(source, "/t"))[0] == f"/t {place}"


def test_a_read_only_bind() -> None:
    assert kernel(Mount("/opt", "/t", True), Mount("/srv/ro", "/u", True)) == [
        "/t ro 254:1 /opt",
        "/u ro 254:3 /data",
    ]


def test_a_target_is_spelled_as_the_kernel_spells_it() -> None:
    mounted = kernel(Mount("/opt", "/a b\\c"), tmpfs=(Tmpfs("/t u"),))

    assert mounted == ["/t\\040u rw tmpfs /", "/a\\040b\\134c rw 254:1 /opt"]


def test_mounts_below_a_source_may_come_along() -> None:
    assert kernel(Mount("/home/me", "/workspace"), Mount("/srv", "/srv", True)) == [
        "/workspace rw 254:2 /@home/me",
        "/workspace/project\\040two * 0:51 /",
        "/workspace/project/node_modules * 0:50 /",
        "/srv ro 254:1 /srv",
        "/srv/rw\\011tab * 0:60 /",
        "/srv/back\\134slash * 254:6 /a\\134b",
        "/srv/over * 254:5 /",
        "/srv/over * 254:4 /",
        "/srv/ro * 254:3 /data",
    ]


def test_a_mount_beside_a_source_does_not() -> None:
    assert kernel(Mount("/home/me/project", "/w")) == [
        "/w rw 254:2 /@home/me/project",
        "/w/node_modules * 0:50 /",
    ]


def test_without_a_table_targets_and_modes_are_all_that_is_known() -> None:
    mounts = Mount("/home/me", "/workspace"), Mount("/opt", "/t", True)

    assert kernel(*mounts, table="") == [
        "/workspace rw - -",
        "/t ro - -",
    ]


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="no Linux")
def test_this_machines_table_tells_where_a_folder_is(tmp_path: Path) -> None:
    """Its device is what the kernel says of the folder, if no file system of many devices is below it."""
    table, boot = mount_table()

    assert len(boot) == 36
    (line, *_) = kernel(Mount(str(tmp_path), "/t"), table=table)
    _, _, device, root = line.split(" ")
    found = [row.split(" ") for row in table.splitlines()]
    assert device in {row[2] for row in found}
    assert str(tmp_path).endswith(root.rpartition("/")[2])


def test_a_machine_without_proc_has_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)

    assert mount_table() == ("", "")


# Just before the run


def test_recheck_accepts_what_stayed(tmp_path: Path, workspace: Path) -> None:
    recheck([Mount(str(workspace.resolve()), "/workspace")])


@pytest.mark.parametrize("swapped", ["workspace", "parent"])
def test_recheck_refuses_a_folder_that_became_a_link(tmp_path: Path, swapped: str) -> None:
    folder = tmp_path / "parent/workspace"
    folder.mkdir(parents=True)
    mount = Mount(str(folder.resolve()), "/workspace")
    if swapped == "workspace":
        folder.rmdir()
        folder.symlink_to("/etc")
    else:
        shutil.rmtree(tmp_path / "parent")
        (tmp_path / "elsewhere/workspace").mkdir(parents=True)
        (tmp_path / "parent").symlink_to("elsewhere")

    refused("mounts", recheck, [mount])


# Sessions


def test_a_sessions_folder_is_private(tmp_path: Path) -> None:
    assert prepare_sessions(tmp_path / "deep/state", "bot", ME)
    assert not prepare_sessions(tmp_path / "deep/state", "bot", ME)

    assert (tmp_path / "deep/state/sessions/bot").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes folders for another user")
def test_a_sessions_folder_that_a_killed_start_has_left_still_gets_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "state/sessions/bot"
    folder.mkdir(parents=True, mode=0o700)

    prepare_sessions(tmp_path / "state", "bot", User(1234, 1235))

    assert (folder.stat().st_uid, folder.stat().st_gid) == (1234, 1235)


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes folders for another user")
def test_sessions_of_another_user_are_told_before_the_start(tmp_path: Path) -> None:
    prepare_sessions(tmp_path, "bot", User(1000, 1000), ("a",))

    with pytest.raises(StateError) as caught:
        prepare_sessions(tmp_path, "bot", User(1234, 1235), ("a",))

    assert "1234:1235 can not write" in caught.value.message
    assert f"chown -R 1234:1235 {tmp_path}/sessions/bot" in caught.value.next_step


def test_of_the_sessions_only_what_is_kept_is_the_hosts(tmp_path: Path) -> None:
    found = build(tmp_path, kept=("projects/-here", "tasks"))

    assert [mount for mount in found.mounts if mount.target.startswith("/container-runner/")] == [
        Mount(str(tmp_path / f"state/sessions/bot/{name}"), f"/container-runner/sessions/{name}")
        for name in ("projects/-here", "tasks")
    ]
    in_memory = {tmpfs.target: tmpfs.mode for tmpfs in found.tmpfs}
    assert in_memory["/container-runner/sessions"] == in_memory["/container-runner/sessions/projects"] == 0o1777


def test_the_kept_folders_are_made_for_the_agents_user(tmp_path: Path) -> None:
    assert prepare_sessions(tmp_path, "bot", User(1234, 1235), ("a/b",))
    assert not prepare_sessions(tmp_path, "bot", User(1234, 1235), ("a/b",))
    assert prepare_sessions(tmp_path, "bot", User(1234, 1235), ("a/b", "c"))

    for name in ("a", "a/b", "c"):
        found = (tmp_path / "sessions/bot" / name).stat()
        assert stat.S_IMODE(found.st_mode) == 0o700
        assert found.st_uid == (1234 if os.getuid() == 0 else os.getuid())
    (tmp_path / "sessions/bot/d").symlink_to("/etc")
    refused("state_dir", prepare_sessions, tmp_path, "bot", ME, ("d",))


@pytest.mark.parametrize("name", ["sessions", "sessions/bot"])
def test_a_link_in_the_place_of_sessions_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "state/sessions").mkdir(parents=True)
    (tmp_path / "elsewhere/bot").mkdir(parents=True)
    if name == "sessions":
        (tmp_path / "state/sessions").rmdir()
    (tmp_path / "state" / name).symlink_to(tmp_path / "elsewhere")

    refused("state_dir", prepare_sessions, tmp_path / "state", "bot", ME)


def test_a_state_folder_that_can_not_be_made_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StateError):
        prepare_sessions(tmp_path / "file/state", "bot", ME)


# Credentials


@pytest.mark.parametrize(
    ("wanted", "variable", "file", "by_name", "mounted"),
    [
        ("auto", True, True, True, False),
        ("auto", False, True, False, True),
        ("auto", False, False, False, False),
        ("env", True, True, True, False),
        ("env", False, True, False, False),
        ("file", True, True, False, True),
        ("none", True, True, False, False),
    ],
)
def test_how_the_agent_gets_its_login(
    tmp_path: Path, home: Path, wanted: str, variable: bool, file: bool, by_name: bool, mounted: bool
) -> None:
    if file:
        (home / ".agent").mkdir()
        (home / ".agent/login.json").write_text('{"token": "the-token"}')

    found = build(tmp_path, environ=("API_KEY",) if variable else (), credentials=wanted)

    login = Mount(str(home / ".agent/login.json"), "/container-runner/sessions/login", read_only=True)
    assert found.credentials_by_name is by_name
    assert (login in found.mounts) is mounted
    assert found.hidden == ({"login.json:token": "the-token"} if mounted else {})


@pytest.mark.parametrize("content", ["", "{}", '{"token": ""}', '{"token": "x", "expiresAt": 0}'])
def test_a_login_file_without_a_login_is_none(tmp_path: Path, home: Path, content: str) -> None:
    (home / ".agent").mkdir()
    (home / ".agent/login.json").write_text(content)

    assert not any(mount.target.endswith("login") for mount in build(tmp_path, credentials="auto").mounts)
    with pytest.raises(ConfigError, match="login"):
        build(tmp_path, credentials="file")


def test_what_is_in_a_file_of_secrets_is_secret(tmp_path: Path) -> None:
    (tmp_path / "deploy").write_text("the-key\n")
    volumes = [f"{tmp_path}/deploy:/run/secrets/deploy:ro", f"{tmp_path}/deploy:/mnt/deploy:ro"]

    assert build(tmp_path, volumes=volumes, credentials="none").hidden == {"deploy": "the-key"}


def test_a_login_file_that_is_wanted_and_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build(tmp_path, credentials="file")

    assert caught.value.field == "credentials"
    assert "API_KEY" in caught.value.allowed


def test_agent_configuration_and_a_state_folder_are_enough(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    workspace.chmod(0o777)
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude" / ".credentials.json").write_text('{"token": "x"}')
    (tmp_path / ".claude" / ".credentials.json").chmod(0o644)
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    agent, config = Agent(name="bot", workspace=str(workspace)), ContainerConfig(image="i")

    mounts = build_container_mounts(agent, config, str(tmp_path / "state"))

    targets = {mount.target: (mount.source, mount.read_only) for mount in mounts}
    assert targets["/workspace"] == (str(workspace), False)
    assert targets["/container-runner/sessions/tasks"] == (f"{tmp_path}/state/sessions/bot/tasks", False)
    assert targets["/container-runner/sessions/.credentials.json"][1]
    assert list(mounts) == list(mounts.mounts)

    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    assert build_container_mounts(agent, config, tmp_path / "state").credentials_by_name
