"""A command line of claude's, for the container."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from container_runner.box.translator import Translator
from container_runner.box.words import in_the_box
from container_runner.config.container import ContainerConfig
from container_runner.errors import ConfigError
from container_runner.options import Agent


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("project/src", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "project/mcp.json").write_text("{}")
    (tmp_path / "elsewhere/mcp.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def translated(work: Path, *words: str) -> list[str]:
    return list(in_the_box(words, Translator.of(Agent(name="bot", workspace=work), ContainerConfig(image="i"))))


def test_paths_behind_flags_become_the_boxs(work: Path) -> None:
    words = ["--verbose", "--add-dir", f"{work}/src", str(work), f"--plugin-dir={work}/src", "-p", f"look at {work}"]

    assert translated(work, *words) == [
        *("--verbose", "--add-dir", "/workspace/src", "/workspace", "--plugin-dir=/workspace/src"),
        *("-p", f"look at {work}"),
    ]


def test_what_is_no_path_stays(work: Path) -> None:
    words = ["--settings", '{"a": "/home"}', "--model=x", "/review", "--mcp-config", "{broken", "--add-dir=", "--"]
    words += ["--add-dir", "/home"]

    assert translated(work, *words) == words


def test_a_prompt_behind_one_path_is_none(work: Path) -> None:
    words = ["--settings", f"{work}/mcp.json", f"{work}/mcp.json"]

    assert translated(work, *words) == ["--settings", "/workspace/mcp.json", words[2]]


def test_mcp_servers_run_in_the_box(work: Path) -> None:
    given = {"mcpServers": {"a": {"command": f"{work}/src/a", "args": [f"--in={work}"]}, "b": {"type": "sdk"}}}
    _, config = translated(work, "--mcp-config", orjson.dumps(given).decode())

    assert orjson.loads(config)["mcpServers"] == {
        "a": {"command": "/workspace/src/a", "args": ["--in=/workspace"]},
        "b": {"type": "sdk"},
    }
    assert translated(work, "--mcp-config", f"{work}/mcp.json", "x.json")[1:] == [
        *("/workspace/mcp.json", "/workspace/x.json")
    ]


def test_rules_for_paths_are_for_those_in_the_box(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(work.parent))
    words = ["--disallowedTools", f"Read(/{work}/private/**)", "Edit(~/project/*.py),Bash(//a b:*)", "Write(//**)"]
    words += [f"--allowed-tools=Read(/{work.parent}/elsewhere/**)", "-p", f"Read(/{work})"]

    assert translated(work, *words) == [
        *("--disallowedTools", "Read(//workspace/private/**)", "Edit(//workspace/*.py),Bash(//a b:*)", "Write(//**)"),
        *words[4:],
    ]
    with pytest.raises(ConfigError, match="give a rule for the folder that is mounted"):
        translated(work, f"--disallowedTools=Read(/{work.parent}/**)")


def test_settings_are_for_what_is_in_the_box(work: Path) -> None:
    def hook(command: str) -> dict[str, object]:
        return {"hooks": {"Stop": [{"hooks": [{"type": "command", "command": command}]}]}}

    given = {
        **hook(f"python3 '{work}/src/check.py' --in={work} /usr/bin/x"),
        "permissions": {"deny": [f"Read(/{work}/a)"], "additionalDirectories": [f"{work}/src"]},
        "env": {"A": str(work)},
    }
    _, told = translated(work, "--settings", orjson.dumps(given).decode())

    assert orjson.loads(told) == {
        **hook("python3 '/workspace/src/check.py' --in=/workspace /usr/bin/x"),
        "permissions": {"deny": ["Read(//workspace/a)"], "additionalDirectories": ["/workspace/src"]},
        "env": {"A": str(work)},
    }
    with pytest.raises(ConfigError, match="elsewhere"):
        translated(work, "--settings", orjson.dumps(hook(f"sh {work.parent}/elsewhere/mcp.json")).decode())


def test_a_transcript_to_go_on_with_is_a_path_and_a_session_none(work: Path) -> None:
    assert translated(work, "--resume", f"{work}/a.jsonl", "-r", "a") == ["--resume", "/workspace/a.jsonl", "-r", "a"]


@pytest.mark.parametrize("words", [("plugin", "install", "a"), ("mcp", "add", "a", "/bin/a"), ("mcp",), ("update",)])
def test_what_claude_does_to_this_machine_is_refused(work: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="is for this machine"):
        translated(work, *words)

    assert translated(work, "mcp", "serve") == ["mcp", "serve"]
    assert translated(work, "-p", *words) == ["-p", *words]


@pytest.mark.parametrize(
    "flag",
    [
        *("--add-dir", "--mcp-config", "--settings", "--plugin-dir", "--system-prompt-file", "--debug-file"),
        *("--append-subagent-system-prompt-file", "--messaging-socket-path", "--agents", "--managed-settings"),
    ],
)
@pytest.mark.parametrize("joined", [True, False])
def test_a_path_outside_of_every_mount_is_refused_by_name(work: Path, flag: str, joined: bool) -> None:
    outside = str(work.parent / "elsewhere/mcp.json")

    with pytest.raises(ConfigError) as caught:
        translated(work, *([f"{flag}={outside}"] if joined else [flag, outside]))

    assert caught.value.field == flag
    assert outside in caught.value.message


def test_an_mcp_server_of_this_machine_is_refused(work: Path) -> None:
    given = {"mcpServers": {"a": {"command": f"{work.parent}/elsewhere/mcp.json"}}}

    with pytest.raises(ConfigError, match=r"mcp_servers\.a"):
        translated(work, "--mcp-config", orjson.dumps(given).decode())
