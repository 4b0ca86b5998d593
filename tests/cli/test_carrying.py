"""How a folder gets into the box where nobody has said it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from container_runner import Agent, CommandRuntime, ContainerConfig, ContainerRunner, ExecuteOptions
from container_runner.cli.carrying import Choice, choose
from container_runner.cli.flags import ConfigFlags, RunFlags
from tests import carried_engine


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the agent can write."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("CONTAINER_RUNNER_WORKSPACE_MODE", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, 1000, 1000)
    return folder


def chosen(folder: Path, *, state: str = "../state", flags: Any = None, box: Any = None, **config: Any) -> Choice:
    engine = carried_engine.write(folder.parent / "engine")
    runner = ContainerRunner(
        CommandRuntime(["sh"]), ContainerConfig(image="i", engine=str(engine), **config), folder / state, records=False
    )
    options = ExecuteOptions(prompt="x", agent=Agent(name="bot", workspace=folder))
    return choose(runner, options, flags or RunFlags(workspace=folder), box or ConfigFlags())


def test_it_is_carried(folder: Path) -> None:
    choice = chosen(folder, memory="1g")

    assert (choice.is_ours, choice.note) == (True, None)
    assert choice.runner.config == ContainerConfig(
        image="i", engine=choice.runner.config.engine, memory="1g", workspace_mode="carried"
    )
    assert (choice.runner.state_dir, choice.runner.records) == (folder / "../state", None)


@pytest.mark.parametrize("mode", ["rw", "ro", "carried"])
@pytest.mark.parametrize("where", ["flag", "variable", "file"])
def test_what_somebody_has_asked_for_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mode: str, where: str
) -> None:
    box = ConfigFlags(workspace_mode=mode) if where == "flag" else None
    if where == "variable":
        monkeypatch.setenv("CONTAINER_RUNNER_WORKSPACE_MODE", mode)
    if where == "file":
        file = folder.parent / "config/container-runner/config.toml"
        file.parent.mkdir(parents=True)
        file.write_text(f'[defaults]\nworkspace_mode = "{mode}"\n')

    choice = chosen(folder, box=box, workspace_mode=mode)

    assert (choice.runner.config.workspace_mode, choice.is_ours, choice.note) == (mode, False, None)


def test_rw_is_short_for_the_mode(folder: Path) -> None:
    assert not chosen(folder, flags=RunFlags(workspace=folder, rw=True)).is_ours


@pytest.mark.parametrize("config", [{"ephemeral": False}, {"tmpfs": ["/workspace/build"]}, {"pool": 1}])
def test_what_can_not_be_combined_with_it_wins(folder: Path, config: dict[str, Any]) -> None:
    choice = chosen(folder, **config)

    assert (choice.runner.config.workspace_mode, choice.is_ours, choice.note) == ("rw", False, None)


def test_a_state_folder_inside_of_it_wins(folder: Path) -> None:
    assert chosen(folder, state=".state").runner.config.workspace_mode == "rw"


def test_a_stream_is_not_taken_by_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container_runner.box.carried.mount_table", lambda: ((), False))

    choice = chosen(folder)

    assert (choice.runner.config.workspace_mode, choice.is_ours) == ("rw", False)
    assert "--carried works on a copy" in (choice.note or "")


def test_without_git_it_is_told_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))

    choice = chosen(folder)

    assert (choice.runner.config.workspace_mode, choice.is_ours) == ("rw", False)
    assert "Install git 2.38" in (choice.note or "")
