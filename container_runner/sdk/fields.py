"""What is done with each field of `ClaudeAgentOptions`: none of them is ignored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from container_runner.errors import ConfigError

if TYPE_CHECKING:
    from claude_agent_sdk import ClaudeAgentOptions

FLAGS: Final = frozenset(
    {
        *("tools", "allowed_tools", "disallowed_tools", "system_prompt", "mcp_servers", "strict_mcp_config"),
        *("permission_mode", "permission_prompt_tool_name", "can_use_tool", "continue_conversation", "resume"),
        *("session_id", "fork_session", "resume_session_at", "resume_drops_turn", "max_turns", "max_budget_usd"),
        *("task_budget", "model", "fallback_model", "betas", "settings", "extra_args", "include_partial_messages"),
        *("include_hook_events", "setting_sources", "skills", "plugins", "max_thinking_tokens", "thinking", "effort"),
        *("output_format", "add_dirs"),
    }
)
"""What claude is told on its command line, see `flags`."""

SURROUNDINGS: Final = frozenset(
    {"cwd", "env", "stderr", "max_buffer_size", "enable_file_checkpointing", "client_app"}
)  # fmt: skip
"""What is up to the container, its variables and its pipes."""

BY_THE_SDK: Final = frozenset(
    {
        *("hooks", "agents", "forward_subagent_text", "verbatim_prompts"),
        *("session_store_flush", "load_timeout_ms"),  # of a session_store, which is refused
        "debug_stderr",  # which it does not read itself
    }
)
"""What the SDK says over the transport's lines, or nobody needs to do anything for."""

REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cli_path": "claude is the image's: name another one with ClaudeRuntime(program)",
        "user": "the container's user is configured with ContainerConfig(user=...)",
        "sandbox": "the container is the sandbox, and claude's own has not what it needs in there",
        "session_store": "sessions lie in the runner's state_dir, where resume finds them",
    }
)
"""What can not be carried, and what to do instead."""


def check_fields(options: ClaudeAgentOptions) -> None:
    """See that nothing is asked for that would be ignored.

    Raises:
        ConfigError: a field is set that can not be carried, or one that is newer than this package.
    """
    known = FLAGS | SURROUNDINGS | BY_THE_SDK
    for field in dataclasses.fields(options):
        if field.name in known or getattr(options, field.name) == _default(field):
            continue
        why = REFUSED.get(field.name, "this version of container_runner does not know it")
        told = f"ClaudeAgentOptions.{field.name} can not be carried into a container: {why}; leave it out"
        raise ConfigError(field.name, "…", f"left out: {why}", told=told)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
