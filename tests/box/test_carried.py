"""How a workspace is carried, and the engine's command lines for it, word by word."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest

from container_runner.box import carried
from container_runner.box.argv import DOCKER, PODMAN, PODMAN_ROOTLESS, Dialect
from container_runner.box.carried import HELD, Ways, carried_flags, helper_argv, in_kernel, plan_carry
from container_runner.box.user import User
from container_runner.config.container import ContainerConfig
from container_runner.errors import ConfigError
from container_runner.workspace.carry import Carry, Layer

RUN = "0123456789abcdef" * 2
ME = User(os.getuid(), os.getgid())


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def planned(
    workspace: Path, dialect: Dialect = DOCKER, *, state: Path | None = None, user: User = ME, **fields: Any
) -> Carry:
    overlay = fields.pop("overlay", True)
    return plan_carry(
        ContainerConfig(image="i", workspace_mode="carried", **fields),
        dialect,
        run=RUN,
        agent="bot",
        workspace=workspace,
        state_dir=state or workspace.parent / "state",
        user=user,
        engine="docker",
        container="NAME",
        overlay=overlay,
    )


def layered(lower: str = "/src", folder: str = "/state/layers/r/0") -> Carry:
    layer = Layer(lower=lower, target="/workspace", folder=folder)
    return Carry(run=RUN, agent="bot", workspace=lower, how="overlay", layers=(layer,), container="NAME", user="1:2")


def streamed() -> Carry:
    return Carry(
        run=RUN, agent="bot", workspace="/src", how="stream", volume="VOLUME", nonce="n", container="NAME", user="1:2"
    )


def test_by_default_it_is_an_overlay(workspace: Path, tmp_path: Path) -> None:
    carry = planned(workspace)

    folder = f"{tmp_path}/state/layers/{RUN}/0"
    assert carry.how == "overlay"
    assert carry.layers == (Layer(lower=str(workspace), target="/workspace", folder=folder),)
    assert (carry.volume, carry.is_forced, carry.phase) == ("", False, "in")
    assert (carry.run, carry.agent, carry.container, carry.user) == (RUN, "bot", "NAME", str(ME))


def test_a_stream_goes_into_a_volume_that_can_be_told_from_another(workspace: Path) -> None:
    one, two = planned(workspace, carry="stream"), planned(workspace, overlay=False)

    assert (one.how, one.layers, one.volume) == ("stream", (), f"container-runner-{RUN}")
    assert two.how == "stream"
    assert len(one.nonce) == 32
    assert one.nonce != two.nonce
    assert one.nonce not in repr(one)


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b"])
def test_podman_takes_no_such_path_for_an_overlay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()

    assert planned(tmp_path / name, PODMAN).how == "stream"
    assert planned(tmp_path / name, DOCKER).how == "overlay"
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path / name, PODMAN, carry="overlay")
    assert caught.value.field == "carry"
    assert caught.value.allowed.startswith('"stream", because podman takes no overlay')


def test_the_state_folders_path_counts_as_well(workspace: Path, tmp_path: Path) -> None:
    assert planned(workspace, PODMAN, state=tmp_path / "a:b").how == "stream"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may have another user's files")
def test_a_user_that_can_not_write_the_folder_gets_a_copy_of_its_own(workspace: Path) -> None:
    workspace.chmod(0o755)

    assert planned(workspace, user=User(1234, 1234)).how == "stream"
    with pytest.raises(ConfigError, match="can not write"):
        planned(workspace, user=User(1234, 1234), carry="overlay")


def test_what_another_user_writes_could_not_be_removed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)

    with pytest.raises(ConfigError, match="could not be removed"):
        planned(workspace, user=User(1234, 1234), carry="overlay")


def test_another_machines_engine_gets_a_stream(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "mount_table", lambda: ("", ""))

    assert planned(workspace).how == "stream"


def test_our_state_folder_is_not_carried(workspace: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(workspace, state=workspace / ".container-runner")
    assert caught.value.field == "state_dir"
    assert "--state-dir" in caught.value.allowed


def test_a_worktrees_repository_comes_with_it(tmp_path: Path) -> None:
    common, own, tree = tmp_path / "main" / ".git", tmp_path / "main" / ".git" / "worktrees" / "t", tmp_path / "t"
    for folder in (common / "objects", common / "refs", own, tree):
        folder.mkdir(parents=True)
    (common / "HEAD").write_text("ref: refs/heads/main\n")
    (own / "commondir").write_text("../..\n")
    (own / "gitdir").write_text(f"{tree}/.git\n")
    (tree / ".git").write_text(f"gitdir: {own}\n")

    first, second = planned(tree).layers

    assert (first.lower, first.target) == (str(tree), "/workspace")
    assert (second.lower, second.target) == (str(common), str(common))
    assert first.folder != second.folder
    assert planned(tree, carry="stream").layers == ()


def test_an_overlay_on_docker_is_a_volume_without_a_name() -> None:
    (flag,) = carried_flags(layered(), DOCKER)

    assert flag == (
        "--mount=type=volume,dst=/workspace,volume-driver=local,volume-opt=type=overlay,volume-opt=device=overlay,"
        '"volume-opt=o=lowerdir=/src,upperdir=/state/layers/r/0/upper,workdir=/state/layers/r/0/work"'
    )


def test_docker_is_told_an_odd_path_so_that_the_kernel_understands_it() -> None:
    (flag,) = carried_flags(layered('/a:b,c\\d "e', "/s:t"), DOCKER)

    fields = next(csv.reader([flag.removeprefix("--mount=")]))
    assert fields[-1] == r'volume-opt=o=lowerdir=/a\:b\,c\\d "e,upperdir=/s\:t/upper,workdir=/s\:t/work'


@pytest.mark.parametrize("dialect", [PODMAN, PODMAN_ROOTLESS])
def test_an_overlay_on_podman(dialect: Dialect) -> None:
    (flag,) = carried_flags(layered("/a b"), dialect)

    assert flag == "--volume=/a b:/workspace:O,upperdir=/state/layers/r/0/upper,workdir=/state/layers/r/0/work"


def test_what_an_image_has_at_that_place_is_not_copied_into_a_volume() -> None:
    assert carried_flags(streamed(), DOCKER) == ["--mount=type=volume,src=VOLUME,dst=/workspace,volume-nocopy"]
    assert carried_flags(streamed(), PODMAN) == ["--volume=VOLUME:/workspace:nocopy"]


def test_docker_makes_the_volume_with_its_container_and_podman_before() -> None:
    """A container that only fetches must not make one: it would be empty, and have the right label."""
    carry, work = streamed(), f"container-runner.work={RUN}"

    (flag,) = carried_flags(carry, DOCKER, makes=True)

    assert flag == f"{carried_flags(carry, DOCKER)[0]},volume-label={work},volume-label=container-runner.nonce=n"
    assert Ways.of(carry, "docker", DOCKER).make == ()
    assert carried_flags(carry, PODMAN, makes=True) == carried_flags(carry, PODMAN)
    assert Ways.of(carry, "podman", PODMAN).make == (
        *("podman", "volume", "create"),
        *(f"--label={work}", "--label=container-runner.nonce=n", "VOLUME"),
    )


def test_what_the_kernel_is_to_say() -> None:
    odd = layered("/a:b,c d")

    assert in_kernel(odd, DOCKER) == [
        r"/workspace rw overlay lowerdir=/a\134:b\134\054c\040d,"
        "upperdir=/state/layers/r/0/upper,workdir=/state/layers/r/0/work"
    ]
    assert in_kernel(layered("/a b"), PODMAN)[0].startswith(r"/workspace rw overlay lowerdir=/a\040b,upperdir=/state")
    assert in_kernel(streamed(), DOCKER) == ["/workspace rw volume VOLUME"]


def test_a_helper_sees_the_work_and_nothing_else() -> None:
    words = helper_argv(
        "docker", DOCKER, name="H", image="i", user="1:2", labels={"a": "b"}, carry=streamed(), script="echo",
        arguments=["x"],
    )  # fmt: skip

    assert words == [
        *(
            "docker",
            "run",
            "--rm",
            "--interactive",
            "--name=H",
            "--label=a=b",
            "--pull=never",
            "--entrypoint=sh",
            "--user=1:2",
        ),
        *("--workdir=/", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only"),
        "--tmpfs=/tmp:rw,nosuid,nodev,noexec,size=536870912,mode=1777",
        *("--network=none", "--memory=1073741824", "--pids-limit=256", "--log-driver=none", "--no-healthcheck"),
        "--mount=type=volume,src=VOLUME,dst=/workspace,volume-nocopy",
        *(f"--env={name}=" for name in DOCKER.blank),
        *("--", "i", "-c", HELD, "sh", "echo", "sh", "x"),
    ]
