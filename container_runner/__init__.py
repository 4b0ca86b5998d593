"""Run AI coding agents in locked-down containers with nothing but the docker or podman command line."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from container_runner.config import ContainerConfig as ContainerConfig
    from container_runner.config import RecordLimits as RecordLimits
    from container_runner.engine import Engine as Engine
    from container_runner.environment import build_container_env as build_container_env
    from container_runner.errors import ConfigError as ConfigError
    from container_runner.errors import ContainerRunnerError as ContainerRunnerError
    from container_runner.lines import OversizedLine as OversizedLine
    from container_runner.manager import ContainerManager as ContainerManager
    from container_runner.messages import AssistantMessage as AssistantMessage
    from container_runner.messages import ErrorMessage as ErrorMessage
    from container_runner.messages import Message as Message
    from container_runner.messages import OutputLine as OutputLine
    from container_runner.messages import ResultMessage as ResultMessage
    from container_runner.messages import StreamEvent as StreamEvent
    from container_runner.messages import SystemMessage as SystemMessage
    from container_runner.messages import TextBlock as TextBlock
    from container_runner.messages import ThinkingBlock as ThinkingBlock
    from container_runner.messages import ToolResultBlock as ToolResultBlock
    from container_runner.messages import ToolUseBlock as ToolUseBlock
    from container_runner.messages import UnknownMessage as UnknownMessage
    from container_runner.messages import UserMessage as UserMessage
    from container_runner.messages import parse_line as parse_line
    from container_runner.mounts import build_container_mounts as build_container_mounts
    from container_runner.options import Agent as Agent
    from container_runner.options import ExecuteOptions as ExecuteOptions
    from container_runner.plan import Plan as Plan
    from container_runner.runner import ContainerRunner as ContainerRunner
    from container_runner.runtimes import ClaudeRuntime as ClaudeRuntime
    from container_runner.runtimes import CommandRuntime as CommandRuntime
    from container_runner.runtimes import Runtime as Runtime
    from container_runner.values import Mount as Mount
    from container_runner.values import PortBinding as PortBinding
    from container_runner.values import Tmpfs as Tmpfs

__version__ = "0.1.0"

_MODULES = {
    "Agent": "options",
    "AssistantMessage": "messages",
    "ClaudeRuntime": "runtimes",
    "CommandRuntime": "runtimes",
    "ConfigError": "errors",
    "ContainerConfig": "config",
    "ContainerManager": "manager",
    "ContainerRunner": "runner",
    "ContainerRunnerError": "errors",
    "Engine": "engine",
    "ErrorMessage": "messages",
    "ExecuteOptions": "options",
    "Message": "messages",
    "Mount": "values",
    "OutputLine": "messages",
    "OversizedLine": "lines",
    "Plan": "plan",
    "PortBinding": "values",
    "RecordLimits": "config",
    "ResultMessage": "messages",
    "Runtime": "runtimes",
    "StreamEvent": "messages",
    "SystemMessage": "messages",
    "TextBlock": "messages",
    "ThinkingBlock": "messages",
    "Tmpfs": "values",
    "ToolResultBlock": "messages",
    "ToolUseBlock": "messages",
    "UnknownMessage": "messages",
    "UserMessage": "messages",
    "build_container_env": "environment",
    "build_container_mounts": "mounts",
    "parse_line": "messages",
}
"""Where each public name is defined. A name's module is imported when the name is first used, so that a program
that only asks for the version, or pytest looking for plugins, does not wait for the rest."""

__all__ = [
    "__version__",
    *_MODULES,
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
