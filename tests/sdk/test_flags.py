"""What claude is told on its command line, held against what the SDK's own transport would tell it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import ClaudeAgentOptions, PermissionResultAllow, create_sdk_mcp_server
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport

from container_runner import Agent, ContainerConfig
from container_runner.box.translator import Translator
from container_runner.errors import ConfigError
from container_runner.sdk.flags import PROMPT_FILE, SERVERS_FILE, SETTINGS_FILE, Flags, make_flags, servers_of

AGENT = Agent(name="bot")
CONFIG = ContainerConfig(image="some/image")


def flags_of(options: ClaudeAgentOptions) -> Flags:
    """With paths that are the same in the container."""
    agent = Agent(
        name="bot",
        mcp_servers=servers_of(options),
        add_dirs=[str(path) for path in options.add_dirs],
        plugin_dirs=[plugin["path"] for plugin in options.plugins],
    )
    return make_flags(options, agent, Translator.of(Agent(name="bot", workspace=options.cwd), CONFIG))


def pairs(words: list[str]) -> list[tuple[str, str]]:
    """Flags with their values, however they are written, in the order of their names."""
    found: list[tuple[str, str]] = []
    for word in words:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            found.append((name, value))
        else:
            found[-1] = (found[-1][0], word)
    return sorted(found)


async def may(*_: Any) -> PermissionResultAllow:
    return PermissionResultAllow()


FIELDS: list[dict[str, Any]] = [
    {},
    {"system_prompt": "You are brief."},
    {"system_prompt": {"type": "preset", "preset": "claude_code"}},
    {"system_prompt": {"type": "preset", "preset": "claude_code", "append": "And kind."}},
    {"system_prompt": {"type": "custom", "prompt": "You are brief.", "snapshot": True}},
    {"tools": []},
    {"tools": ["Bash", "Read"], "allowed_tools": ["Read", "Bash(git log:*)"], "disallowed_tools": ["WebFetch", "Task"]},
    {"tools": {"type": "preset", "preset": "claude_code"}},
    {
        "max_turns": 3,
        "max_budget_usd": 0.5,
        "task_budget": {"total": 9000},
        "model": "sonnet",
        "fallback_model": "opus",
    },
    {"max_turns": 0, "model": "", "fallback_model": ""},
    {"betas": ["context-1m-2025-08-07"], "permission_mode": "plan", "permission_prompt_tool_name": "mcp__a__b"},
    {"continue_conversation": True, "fork_session": True, "session_id": "00000000-0000-4000-8000-000000000001"},
    {"resume": "s1", "fork_session": True, "resume_session_at": "u1", "resume_drops_turn": "u2"},
    {"resume_drops_turn": ""},
    {"add_dirs": ["/data", Path("/more")], "plugins": [{"type": "local", "path": "/data/plugin"}]},
    {"strict_mcp_config": True, "include_partial_messages": True, "include_hook_events": True},
    {"setting_sources": []},
    {"setting_sources": ["user", "local"]},
    {"skills": "all"},
    {"skills": ["pdf", "my-plugin:review"], "allowed_tools": ["Read"]},
    {"skills": [], "setting_sources": ["project"]},
    {"thinking": {"type": "adaptive", "display": "summarized"}},
    {"thinking": {"type": "enabled", "budget_tokens": 2000}, "max_thinking_tokens": 1},
    {"thinking": {"type": "disabled"}},
    {"max_thinking_tokens": 0, "effort": "high"},
    {"output_format": {"type": "json_schema", "schema": {"type": "object"}}},
    {"extra_args": {"replay-user-messages": None, "debug-file": "/tmp/log", "name": "-dash"}},
]


@pytest.mark.parametrize("fields", FIELDS)
def test_the_flags_are_those_of_the_sdks_own_transport(fields: dict[str, Any]) -> None:
    options = ClaudeAgentOptions(**fields)
    theirs = SubprocessCLITransport("", ClaudeAgentOptions(**fields, cli_path="claude"))._build_command()[1:]

    assert pairs(list(flags_of(options).words)) == pairs(theirs)


def test_a_callback_is_never_there_for_nothing() -> None:
    assert "--permission-prompt-tool=stdio" in flags_of(ClaudeAgentOptions(can_use_tool=may)).words


def test_no_value_can_be_taken_for_a_flag() -> None:
    options = ClaudeAgentOptions(model="--dangerously-skip-permissions", system_prompt="--help", resume="-p")

    assert all(word.startswith("--") for word in flags_of(options).words)
    assert {"--model=--dangerously-skip-permissions", "--system-prompt=--help", "--resume=-p"} <= {
        *flags_of(options).words
    }


def test_servers_and_settings_travel_in_files_for_they_may_hold_keys(tmp_path: Path) -> None:
    servers = {"web": {"command": "web", "env": {"KEY": "k3y"}}, "ours": create_sdk_mcp_server("ours")}
    (tmp_path / "settings.json").write_text('\ufeff{"env": {"TOKEN": "t0ken"}}', "utf-8")
    (tmp_path / "prompt.md").write_text("You are long.")
    flags = flags_of(
        ClaudeAgentOptions(
            cwd=tmp_path,
            mcp_servers=servers,  # type: ignore[arg-type]  # as people write it
            settings="settings.json",
            system_prompt={"type": "file", "path": str(tmp_path / "prompt.md")},
        )
    )

    assert {f"--mcp-config={SERVERS_FILE}", f"--settings={SETTINGS_FILE}", f"--system-prompt-file={PROMPT_FILE}"} <= {
        *flags.words
    }
    assert json.loads(flags.files[SERVERS_FILE])["mcpServers"] == {
        "web": servers["web"],
        "ours": {"type": "sdk", "name": "ours"},
    }
    assert json.loads(flags.files[SETTINGS_FILE]) == {"env": {"TOKEN": "t0ken"}}
    assert flags.files[PROMPT_FILE] == "You are long."
    assert not re.search("k3y|t0ken", f"{flags.words}{flags}")


def test_paths_in_rules_settings_and_more_flags_are_the_boxs(tmp_path: Path) -> None:
    rule, inside = f"Read(/{tmp_path}/private/**)", "Read(//workspace/private/**)"
    options = ClaudeAgentOptions(
        cwd=tmp_path,
        allowed_tools=[rule],
        disallowed_tools=["Bash", rule],
        settings=json.dumps({"permissions": {"deny": [rule]}}),
        extra_args={"debug-file": f"{tmp_path}/log", "verbose": None},
    )
    flags = flags_of(options)

    assert {f"--allowedTools={inside}", f"--disallowedTools=Bash,{inside}"} <= {*flags.words}
    assert flags.words[-2:] == ("--debug-file=/workspace/log", "--verbose")
    assert json.loads(flags.files[SETTINGS_FILE]) == {"permissions": {"deny": [inside]}}

    (tmp_path / "work").mkdir()
    with pytest.raises(ConfigError, match="disallowed_tools"):
        flags_of(ClaudeAgentOptions(cwd=tmp_path / "work", disallowed_tools=[f"Read(/{tmp_path}/**)"]))
    with pytest.raises(ConfigError, match="--debug-file"):
        flags_of(ClaudeAgentOptions(cwd=tmp_path / "work", extra_args={"debug-file": "/home/log"}))


@pytest.mark.parametrize("how", ["text", "file"])
def test_servers_may_be_a_text_or_a_file(tmp_path: Path, how: str) -> None:
    text = '{"mcpServers": {"web": {"type": "http", "url": "https://x.example"}}}'
    (tmp_path / "mcp.json").write_text(text)
    options = ClaudeAgentOptions(mcp_servers=text if how == "text" else tmp_path / "mcp.json")

    assert servers_of(options) == {"web": {"type": "http", "url": "https://x.example"}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("settings", "/no/such/file"),
        ("settings", "{no json"),
        ("mcp_servers", "/no/such/file"),
        ("mcp_servers", '{"mcpServers": 3}'),
        ("system_prompt", {"type": "file", "path": "/no/such/file"}),
        ("system_prompt", {"type": "other"}),
        ("skills", "pdf"),
        ("skills", ["a,b"]),
        ("skills", ["*"]),
        ("thinking", {"type": "hard"}),
        ("output_format", {"type": "xml"}),
        ("extra_args", {"flag": "a\0b"}),
        ("model", "m" * 200_000),
    ],
)
def test_what_claude_would_not_take_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field.replace("extra_args", "--flag")):
        flags_of(ClaudeAgentOptions(**{field: value}))
