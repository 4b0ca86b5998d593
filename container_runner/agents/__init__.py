"""The agents that can be run: how each is started, and how its output is read."""

from container_runner.agents.claude import ClaudeRuntime
from container_runner.agents.command import CommandRuntime
from container_runner.agents.runtime import Command, CommandLineRuntime, Credentials, Describes, Runtime, command_line

__all__ = [
    "ClaudeRuntime",
    "Command",
    "CommandLineRuntime",
    "CommandRuntime",
    "Credentials",
    "Describes",
    "Runtime",
    "command_line",
]
