"""Commands that are the same each time, and one flag a line."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from container_runner.agents import ClaudeRuntime
from container_runner.box.argv import DOCKER, PODMAN, PODMAN_ROOTLESS, Dialect
from container_runner.box.golden import pretty, stable
from container_runner.config.container import ContainerConfig
from container_runner.engine.engine import Engine
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner


def commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dialect: Dialect = DOCKER, **config: Any
) -> list[list[str]]:
    """All commands of a plan that is made in *folder*, by another person each time."""
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(os, "getuid", lambda: 2000 + len(str(folder)))
    workspace = folder / "a place"
    (workspace / ".git" / "hooks").mkdir(parents=True)
    (workspace / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    workspace.chmod(0o777)
    runner = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="my/claude", **config), folder / "state")
    engine = Engine(binary=str(folder / dialect.name), dialect=dialect, environ={})
    options = ExecuteOptions(prompt="Hello", agent=Agent(name="bot", workspace=workspace))
    return [list(command) for command in runner.plan(options, engine=engine).commands]


@pytest.mark.parametrize("ephemeral", [True, False])
@pytest.mark.parametrize("dialect", [DOCKER, PODMAN, PODMAN_ROOTLESS], ids=["docker", "podman", "rootless"])
def test_two_folders_two_users_and_two_runs_give_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: Dialect, ephemeral: bool
) -> None:
    here, there = (tmp_path / name for name in ("here", "somewhere, else"))
    one, two = (commands(folder, monkeypatch, dialect, ephemeral=ephemeral) for folder in (here, there))

    assert one != two
    assert list(map(stable, one)) == list(map(stable, two))
    assert str(tmp_path) not in repr(list(map(stable, one)))


def test_what_the_configuration_says_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = commands(tmp_path, monkeypatch, memory="3g", labels={"team": "red"})

    text = stable(command)

    assert text[:6] == (
        "docker", "run", "--rm", "--interactive", "--name=container-runner-bot-RUN", "--label=team=red",
    )  # fmt: skip
    assert {"--memory=3221225472", "--user=USER", "--label=container-runner.agent=bot"} <= set(text)
    assert "--label=container-runner.pid-namespace=PID-NAMESPACE" in text
    assert any(word.startswith("--mount=type=bind,src=WORKSPACE,dst=/workspace") for word in text)
    assert any(word.startswith("--mount=type=bind,src=WORKSPACE/.git/hooks,dst=/workspace/.git/hooks") for word in text)
    assert any(word.startswith("--mount=type=bind,src=STATE/sessions/bot/projects/-workspace,") for word in text)
    after = text[text.index("--") + 1 :]
    assert after[:6] == ("my/claude", "-c", "SEAL", "RUN", "GUEST", "86400")


def test_pretty_is_the_same_command_for_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = commands(tmp_path, monkeypatch)

    text = pretty(command)

    assert shlex.split(re.sub(r"\\\n", "", text)) == command
    assert pretty(stable(command)).count("\n") == len(command) - 2
    assert pretty(stable(command)).startswith("docker run \\\n  --rm \\\n  --interactive \\\n")


def test_the_workspace_is_known_wherever_it_is() -> None:
    there = stable(["docker", "--label=container-runner.place=/home/me/p", "--mount=type=bind,src=/home/me/p,dst=/x"])
    same = stable(["docker", "--label=container-runner.place=/p", "--mount=type=bind,src=/p,dst=/p"])
    more = stable(["docker", "--mount=type=bind,src=/lib,dst=/lib,readonly"])

    assert there[-1] == "--mount=type=bind,src=/home/me/p,dst=/x"
    assert same[-1] == "--mount=type=bind,src=WORKSPACE,dst=/p"
    assert more[-1] == "--mount=type=bind,src=/lib,dst=/lib,readonly"
