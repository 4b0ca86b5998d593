"""Run AI coding agents in locked-down containers with nothing but the docker or podman command line."""

from container_runner.config import ContainerConfig
from container_runner.engine import Engine
from container_runner.environment import build_container_env
from container_runner.errors import ConfigError, ContainerRunnerError
from container_runner.lines import OversizedLine
from container_runner.manager import ContainerManager
from container_runner.messages import (
    AssistantMessage,
    ErrorMessage,
    Message,
    OutputLine,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UnknownMessage,
    UserMessage,
    parse_line,
)
from container_runner.mounts import build_container_mounts
from container_runner.options import Agent, ExecuteOptions
from container_runner.plan import Plan
from container_runner.runner import ContainerRunner
from container_runner.runtimes import ClaudeRuntime, CommandRuntime, Runtime
from container_runner.values import Mount, PortBinding, Tmpfs

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AssistantMessage",
    "ClaudeRuntime",
    "CommandRuntime",
    "ConfigError",
    "ContainerConfig",
    "ContainerManager",
    "ContainerRunner",
    "ContainerRunnerError",
    "Engine",
    "ErrorMessage",
    "ExecuteOptions",
    "Message",
    "Mount",
    "OutputLine",
    "OversizedLine",
    "Plan",
    "PortBinding",
    "ResultMessage",
    "Runtime",
    "StreamEvent",
    "SystemMessage",
    "TextBlock",
    "ThinkingBlock",
    "Tmpfs",
    "ToolResultBlock",
    "ToolUseBlock",
    "UnknownMessage",
    "UserMessage",
    "__version__",
    "build_container_env",
    "build_container_mounts",
    "parse_line",
]
