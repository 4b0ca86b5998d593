"""The agents that can be run: how each is started, and how its output is read."""

from collections.abc import Mapping
from typing import Final

from container_runner.agents.adapter import command_line
from container_runner.agents.agent import AgentRuntime
from container_runner.agents.claude import ClaudeRuntime
from container_runner.agents.codex import CodexRuntime
from container_runner.agents.command import CommandRuntime
from container_runner.agents.copilot import CopilotRuntime
from container_runner.agents.gemini import GeminiRuntime
from container_runner.agents.opencode import OpenCodeRuntime
from container_runner.agents.python import PythonRuntime
from container_runner.agents.qwen import QwenRuntime
from container_runner.agents.runtime import Command, CommandLineRuntime, Credentials, Describes, Endpoint, Runtime

KINDS: Final[Mapping[str, type[AgentRuntime]]] = {
    kind.kind: kind
    for kind in (ClaudeRuntime, CodexRuntime, GeminiRuntime, QwenRuntime, OpenCodeRuntime, CopilotRuntime)
}
"""The agents that we know, by what --agent-kind calls each."""

__all__ = [
    "KINDS",
    "AgentRuntime",
    "ClaudeRuntime",
    "CodexRuntime",
    "Command",
    "CommandLineRuntime",
    "CommandRuntime",
    "CopilotRuntime",
    "Credentials",
    "Describes",
    "Endpoint",
    "GeminiRuntime",
    "OpenCodeRuntime",
    "PythonRuntime",
    "QwenRuntime",
    "Runtime",
    "command_line",
]
