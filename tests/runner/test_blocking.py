"""`container_runner.run`, for scripts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import pytest

import container_runner
from container_runner import (
    ClaudeRuntime,
    CommandRuntime,
    ConfigError,
    ContainerConfig,
    ContainerRunnerError,
    ImageNotFoundError,
    Message,
)
from container_runner.config.fields import AGENT, BOX, REQUEST
from container_runner.testing import FakeEngine


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which an agent may write."""
    if os.getuid() == 0:
        os.chown(tmp_path, 1000, 1000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_script_is_one_line(fake_engine: FakeEngine, folder: Path) -> None:
    fake_engine.reply("Done.", prompt="Fix it")

    result = container_runner.run("Fix it", image="my/claude", workspace=".")

    assert result.text == "Done."
    assert "my/claude" in fake_engine.run_argv
    assert f"--mount=type=bind,src={folder},dst=/workspace" in fake_engine.run_argv
    assert (folder / ".container-runner" / "sessions" / "agent").is_dir()


def test_all_that_can_be_said_can_be_said_by_name(fake_engine: FakeEngine, folder: Path) -> None:
    told: list[Message] = []
    fake_engine.reply("Done.", agent="fixer")

    result = container_runner.run(
        "Fix it",
        image="my/claude",
        agent="fixer",
        state_dir=str(folder / "state"),
        network="none",
        memory="3g",
        model="opus",
        max_turns=3,
        timeout=60,
        resume="abc",
        fork=True,
        on_message=told.append,
        keep_messages=True,
    )

    assert {"--network=none", "--memory=3221225472"} <= {*fake_engine.run_argv}
    assert {"--model=opus", "--max-turns=3", "--resume=abc", "--fork-session"} <= {*fake_engine.agent_argv}
    assert len(result.messages) == len(told) == 3


def test_every_field_has_a_name_of_its_own() -> None:
    assert len({*BOX, *AGENT, *REQUEST, "resume", "fork", "session_id"}) == len(BOX) + len(AGENT) + len(REQUEST) + 3


def test_a_box_can_be_given_and_changed(fake_engine: FakeEngine) -> None:
    fake_engine.messages(["hello"])
    config = ContainerConfig(image="i", network="none", memory="3g")

    result = container_runner.run("x", config=config, memory="1g", runtime=CommandRuntime(["agent"]))

    assert result.text == "hello"
    assert {"--network=none", "--memory=1073741824"} <= {*fake_engine.run_argv}
    assert fake_engine.agent_argv[-1] == "agent"


def test_a_failure_is_raised(fake_engine: FakeEngine) -> None:
    fake_engine.fail("image_not_found")

    with pytest.raises(ImageNotFoundError, match="not on this machine"):
        container_runner.run("x", image="i")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "image"),
        ({"image": "i", "mem_limit": "1g"}, "memory (mem_limit is another tool's name for it)"),
        ({"image": "i", "timout": 3}, "perhaps timeout"),
        ({"image": "i", "timeout": "soon"}, "timeout"),
        ({"image": "i", "runtime": ClaudeRuntime}, "an instance, not the class: ClaudeRuntime(...)"),
        ({"config": "my/claude"}, 'a ContainerConfig, as ContainerConfig(image="my/claude")'),
        ({"image": "i", "workspace": "/no/such/folder"}, "workspace"),
    ],
)
def test_what_is_refused_says_what_to_write(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        container_runner.run("x", **fields)

    assert told in str(caught.value)


def test_in_an_event_loop_it_says_what_to_write(anyio_backend: str) -> None:
    async def main() -> None:
        container_runner.run("x", image="i")

    with pytest.raises(ContainerRunnerError, match=f"running event loop \\({anyio_backend}\\)") as caught:
        anyio.run(main, backend=anyio_backend)

    assert "await ContainerRunner(runtime, config).run(options)" in caught.value.next_step
