"""Boxes of an engine that does not see this machine's files, and how that is found out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import attrs
import pytest

from container_runner.agents import ClaudeRuntime
from container_runner.box.argv import DOCKER
from container_runner.box.elsewhere import FETCH, SEND, config_there
from container_runner.box.plan import PROOF, Plan
from container_runner.box.proof import proving
from container_runner.config.container import ContainerConfig
from container_runner.engine.engine import Engine
from container_runner.errors import ConfigError, StateError
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner

THERE = Engine(binary="docker", dialect=DOCKER, environ={}, endpoint="tcp://far:1", sees_files=False)
BOT = Agent(name="bot")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "w").mkdir()
    (tmp_path / "w").chmod(0o777)
    return tmp_path / "w"


def plan(tmp_path: Path, workspace: Path | None, engine: Engine = THERE, **fields: Any) -> Plan:
    options = ExecuteOptions(
        prompt="hi", agent=attrs.evolve(BOT, workspace=workspace), resume=fields.pop("resume", None)
    )
    config = ContainerConfig(image="i", **{"credentials": "none", **fields})
    return ContainerRunner(ClaudeRuntime(), config, tmp_path / "state").plan(options, engine=engine)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("volumes", ["/srv:/data"]),
        ("devices", ["/dev/null"]),
        ("ports", ["80"]),
        ("extra_args", ["--mount=type=bind,src=/x,dst=/y"]),
        ("ephemeral", False),
        ("pool", 1),
    ],
)
def test_what_needs_this_machine_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        config_there(ContainerConfig(image="i", **{field: value}), BOT)

    assert caught.value.field == field
    assert "does not see this machine's files" in str(caught.value)


def test_an_overlay_and_more_folders_are_refused() -> None:
    with pytest.raises(ConfigError, match="carry"):
        config_there(ContainerConfig(image="i", workspace_mode="carried", carry="overlay"), BOT)
    with pytest.raises(ConfigError, match="add_dirs"):
        config_there(ContainerConfig(image="i"), attrs.evolve(BOT, add_dirs=["/srv"]))


def test_a_login_file_is_refused_and_a_variable_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.delenv("CLAUDE_CODE_OAUTH_TOKEN", raising=False)
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude/.credentials.json").write_text('{"accessToken": "secret-1"}')
    (tmp_path / ".claude/.credentials.json").chmod(0o644)
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match=r"credentials must be .*ANTHROPIC_API_KEY"):
        plan(tmp_path, None, credentials="auto")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")

    assert "ANTHROPIC_API_KEY" in plan(tmp_path, None, credentials="auto").variables


@pytest.mark.parametrize("mode", ["rw", "ro", "carried"])
def test_nothing_of_this_machine_is_mounted(tmp_path: Path, workspace: Path, mode: str) -> None:
    found = plan(tmp_path, workspace, workspace_mode=mode)

    assert found.mounts == ()
    assert found.carry is not None
    assert (found.carry.how, found.carry.endpoint) == ("stream", "tcp://far:1")
    assert not any("type=bind" in word for command in found.commands for word in command)
    assert found.proof is None
    assert "tcp://far:1" in found.told_on_stdin


def test_sessions_are_sent_for_one_that_goes_on_and_always_fetched(tmp_path: Path) -> None:
    fresh, resumed = plan(tmp_path, None), plan(tmp_path, None, resume="s")

    assert [command[1] for command in fresh.commands] == ["run", "exec"]
    assert [command[1] for command in resumed.commands] == ["run", "exec", "exec"]
    assert resumed.send_in(resumed.container) in resumed.commands
    assert "projects/-workspace" in resumed.fetch_in("c")


def test_the_scripts_carry_files(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "a b").mkdir(parents=True)
    other.mkdir()
    (one / "a b/f").write_text("x")
    command = ["sh", "-c", FETCH, "sh", str(one), "a b", "missing"]
    said = subprocess.run(command, check=True, capture_output=True).stdout
    subprocess.run(["sh", "-c", SEND, "sh", str(other)], check=True, input=said)

    assert (other / "a b/f").read_text() == "x"


def here(tmp_path: Path) -> Plan:
    found = plan(tmp_path, None, attrs.evolve(THERE, sees_files=True))
    found.prepare()
    return found


def test_the_proof_is_there_for_as_long_as_a_box_starts(tmp_path: Path) -> None:
    found = here(tmp_path)
    assert found.proof is not None
    folder = Path(found.proof.source)
    with proving(found):
        (name,) = (path.name for path in folder.iterdir())
        assert f"proof={found.proof.target}/{name}\n".encode() in found.stdin(proven=True)

    assert not [*folder.iterdir()]
    assert found.run_id in name


def test_a_proof_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    found = here(tmp_path)
    assert found.proof is not None
    old, new = (Path(found.proof.source) / f"{PROOF}{name}" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    with proving(found):
        pass

    assert (old.exists(), new.exists()) == (False, True)


def test_a_proof_is_made_in_no_other_folder(tmp_path: Path) -> None:
    found = here(tmp_path)
    assert found.proof is not None
    folder = Path(found.proof.source)
    (tmp_path / "victim").mkdir()
    folder.rmdir()
    folder.symlink_to(tmp_path / "victim")

    with pytest.raises(StateError), proving(found):
        pass

    assert not [*(tmp_path / "victim").iterdir()]
