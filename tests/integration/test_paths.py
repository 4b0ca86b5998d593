"""Paths on both sides: the workspace at its own path, and more folders."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import pytest

from container_runner import Agent, ExecuteOptions
from tests.integration.runs import ON_OWN_ROOTFUL, Box, collect, error_of, result_of, tool_output

pytestmark = ON_OWN_ROOTFUL


@pytest.mark.parametrize(
    "config",
    [{}, {"ephemeral": False}, {"workspace_mode": "carried"}, {"workspace_mode": "carried", "carry": "stream"}],
    ids=["mounted", "kept", "overlay", "stream"],
)
def test_a_workspace_at_its_own_path(box: Box, config: dict[str, Any]) -> None:
    place = box.workspace
    (place / "real.txt").write_text("real")
    (place / "link").symlink_to(place / "real.txt")
    (place / ".claude").mkdir()
    (place / ".claude/settings.json").write_text("{}")
    git = ("git", "-C", str(place), "-c", "user.name=t", "-c", "user.email=t@t", "-c", f"safe.directory={place}")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    subprocess.run(["chown", "-R", "{}:{}".format(*box.engine.owner), str(place)], check=True)

    told = box.sh(
        "pwd; cat link; echo made >made.txt; ls -d /workspace || echo none; touch .claude/x || echo closed; "
        "ls $CLAUDE_CONFIG_DIR/projects",
        workspace_target="same",
        **{"image": box.engine.images.git, **config} if "workspace_mode" in config else config,
    )

    assert told.split("\n")[0] == str(place)
    assert "\nreal" in told
    assert "none" in told
    assert re.sub(r"[^A-Za-z0-9]", "-", str(place)) in told
    is_carried = "workspace_mode" in config
    assert (place / "made.txt").exists() is not is_carried
    assert ("closed" in told) is not is_carried
    for container in box.containers():
        box.engine.remove(container)


def test_more_folders_are_at_their_own_path_and_read_only_unless_it_is_said(box: Box) -> None:
    library, shared = box.new_folder("library"), box.new_folder("shared")
    (library / "a.txt").write_text("library\n")
    (shared / ".claude").mkdir()
    for path in (library, shared, shared / ".claude"):
        os.chown(path, *box.engine.owner)
    agent = Agent(name="tester", workspace=box.workspace, add_dirs=[library, f"{shared}:rw"])
    words = (
        f"cat {library}/a.txt; touch {library}/b || echo closed; touch {shared}/b; touch {shared}/.claude/x || echo no"
    )

    messages = collect(box.runner(), ExecuteOptions(prompt=f"sh {words}", agent=agent))

    assert error_of(messages) is None, messages
    result_of(messages)
    assert [line for line in tool_output(messages).split("\n") if "touch" not in line] == ["library", "closed", "no"]
    assert not (library / "b").exists()
    assert (shared / "b").exists()
    assert not (shared / ".claude/x").exists()
