"""Who the agent is, and what it may write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from container_runner.box.user import User, check_workspace_access
from container_runner.config.container import ContainerConfig
from container_runner.errors import ConfigError


class FakeFolder:
    """A folder of any owner and mode, which only root could make."""

    def __init__(self, uid: int, gid: int, mode: int = 0o755) -> None:
        self._stat = os.stat_result((mode | 0o040000, 0, 0, 1, uid, gid, 0, 0, 0, 0))

    def stat(self) -> os.stat_result:
        return self._stat

    def __str__(self) -> str:
        return "/work space"


def folder(uid: int, gid: int, mode: int = 0o755) -> Path:
    return FakeFolder(uid, gid, mode)  # type: ignore[return-value]  # it has what is asked of a path


def be(monkeypatch: pytest.MonkeyPatch, uid: int, gid: int) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)
    monkeypatch.setattr(os, "getgid", lambda: gid)


@pytest.mark.parametrize(
    ("configured", "caller", "owner", "expected"),
    [
        (None, (1234, 5678), (42, 43), "1234:5678"),  # you
        (None, (1234, 5678), None, "1234:5678"),
        (None, (0, 0), (42, 43), "42:43"),  # root: the workspace's owner
        (None, (0, 0), (0, 43), "1000:1000"),  # root, and root's workspace
        (None, (0, 0), None, "1000:1000"),  # root, and no workspace
        ("7", (0, 0), (42, 43), "7:7"),
        ("7:8", (1234, 5678), (42, 43), "7:8"),
        ("root", (1234, 5678), (42, 43), "0:0"),
    ],
)
def test_the_agents_user(
    monkeypatch: pytest.MonkeyPatch,
    configured: str | None,
    caller: tuple[int, int],
    owner: tuple[int, int] | None,
    expected: str,
) -> None:
    be(monkeypatch, *caller)

    user = User.of(ContainerConfig(image="i", user=configured), None if owner is None else folder(*owner))

    assert str(user) == expected


@pytest.mark.parametrize(
    ("owner", "mode", "writes"),
    [
        ((1000, 1), 0o700, True),
        ((1000, 1), 0o500, False),
        ((1000, 1), 0o600, False),  # without x nothing in it can be reached
        ((2, 1000), 0o770, True),
        ((2, 1000), 0o750, False),
        ((2, 1000), 0o727, False),  # its group's bits count, not the others'
        ((2, 2), 0o777, True),
        ((2, 2), 0o775, False),
        ((1000, 1000), 0o077, False),  # the owner's bits count, not the group's
    ],
)
def test_whether_another_user_can_write(
    monkeypatch: pytest.MonkeyPatch, owner: tuple[int, int], mode: int, writes: bool
) -> None:
    be(monkeypatch, 0, 0)

    assert User(1000, 1000).can_write(folder(*owner, mode)) is writes


@pytest.mark.parametrize(
    ("owner", "mode", "reads"),
    [((1000, 1), 0o400, True), ((1000, 1000), 0o044, False), ((2, 1000), 0o640, True), ((2, 2), 0o640, False)],
)
def test_whether_another_user_can_read(owner: tuple[int, int], mode: int, reads: bool) -> None:
    assert User(1000, 1000).can_read(folder(*owner, mode)) is reads


def test_root_writes_and_reads_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, 1000, 1000)

    assert User(0, 0).can_write(folder(5, 5, 0o000))
    assert User(0, 0).can_read(folder(5, 5, 0o000))


def test_the_caller_itself_is_judged_by_the_system(tmp_path: Path) -> None:
    assert User(os.getuid(), os.getgid()).can_write(tmp_path)


def test_a_workspace_that_the_agent_can_not_write_is_refused_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, 0, 0)
    with pytest.raises(ConfigError) as caught:
        check_workspace_access(User(1000, 1000), folder(0, 0), ContainerConfig(image="i"))

    assert caught.value.field == "agent.workspace"
    assert "chown -R 1000:1000 '/work space'" in caught.value.next_step
    assert caught.value.next_step.index("--carried") < caught.value.next_step.index("chown")  # which git minds


def test_nobody_is_told_to_give_away_a_folder_that_is_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, 0, 0)
    monkeypatch.setattr("container_runner.box.user.SHARED", ("/work space",))
    with pytest.raises(ConfigError, match="make a folder in '/work space'") as caught:
        check_workspace_access(User(1000, 1000), folder(0, 0), ContainerConfig(image="i"))

    assert "chown" not in caught.value.next_step


def test_a_workspace_that_is_only_read_need_not_be_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, 0, 0)

    check_workspace_access(User(1000, 1000), folder(0, 0), ContainerConfig(image="i", workspace_mode="ro"))
