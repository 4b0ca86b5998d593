"""Run AI coding agents in locked-down containers with nothing but the docker or podman command line."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from container_runner.agents import KINDS as KINDS
    from container_runner.agents import AgentRuntime as AgentRuntime
    from container_runner.agents import ClaudeRuntime as ClaudeRuntime
    from container_runner.agents import CodexRuntime as CodexRuntime
    from container_runner.agents import Command as Command
    from container_runner.agents import CommandLineRuntime as CommandLineRuntime
    from container_runner.agents import CommandRuntime as CommandRuntime
    from container_runner.agents import CopilotRuntime as CopilotRuntime
    from container_runner.agents import Credentials as Credentials
    from container_runner.agents import Describes as Describes
    from container_runner.agents import GeminiRuntime as GeminiRuntime
    from container_runner.agents import OpenCodeRuntime as OpenCodeRuntime
    from container_runner.agents import PythonRuntime as PythonRuntime
    from container_runner.agents import QwenRuntime as QwenRuntime
    from container_runner.agents import Runtime as Runtime
    from container_runner.agents.acp import AcpRuntime as AcpRuntime
    from container_runner.box.environment import ContainerEnv as ContainerEnv
    from container_runner.box.environment import build_container_env as build_container_env
    from container_runner.box.mounts import ContainerMounts as ContainerMounts
    from container_runner.box.mounts import build_container_mounts as build_container_mounts
    from container_runner.box.plan import Plan as Plan
    from container_runner.box.translator import Translator as Translator
    from container_runner.box.user import User as User
    from container_runner.config.container import ContainerConfig as ContainerConfig
    from container_runner.config.limits import RecordLimits as RecordLimits
    from container_runner.config.servers import HostServer as HostServer
    from container_runner.config.values import Injection as Injection
    from container_runner.config.values import Mount as Mount
    from container_runner.config.values import PathMapping as PathMapping
    from container_runner.config.values import PortBinding as PortBinding
    from container_runner.config.values import Tmpfs as Tmpfs
    from container_runner.doctor.checks import Check as Check
    from container_runner.doctor.doctor import examine as examine
    from container_runner.engine.engine import Engine as Engine
    from container_runner.errors import AgentError as AgentError
    from container_runner.errors import AgentFailedError as AgentFailedError
    from container_runner.errors import AgentKilledError as AgentKilledError
    from container_runner.errors import AuthenticationError as AuthenticationError
    from container_runner.errors import CleanupError as CleanupError
    from container_runner.errors import CommandNotExecutableError as CommandNotExecutableError
    from container_runner.errors import CommandNotFoundError as CommandNotFoundError
    from container_runner.errors import ConfigError as ConfigError
    from container_runner.errors import ConflictError as ConflictError
    from container_runner.errors import ContainerGoneError as ContainerGoneError
    from container_runner.errors import ContainerRunnerError as ContainerRunnerError
    from container_runner.errors import ControlTimeoutError as ControlTimeoutError
    from container_runner.errors import DiskFullError as DiskFullError
    from container_runner.errors import DiskLimitError as DiskLimitError
    from container_runner.errors import EngineArgumentError as EngineArgumentError
    from container_runner.errors import EngineBusyError as EngineBusyError
    from container_runner.errors import EngineError as EngineError
    from container_runner.errors import EngineNotFoundError as EngineNotFoundError
    from container_runner.errors import EnginePermissionError as EnginePermissionError
    from container_runner.errors import EngineTimeoutError as EngineTimeoutError
    from container_runner.errors import EngineUnreachableError as EngineUnreachableError
    from container_runner.errors import ExecLostError as ExecLostError
    from container_runner.errors import GitNotFoundError as GitNotFoundError
    from container_runner.errors import IdleTimeoutError as IdleTimeoutError
    from container_runner.errors import ImageNotFoundError as ImageNotFoundError
    from container_runner.errors import ImageUnsuitableError as ImageUnsuitableError
    from container_runner.errors import IncompleteOutputError as IncompleteOutputError
    from container_runner.errors import MountError as MountError
    from container_runner.errors import NameTakenError as NameTakenError
    from container_runner.errors import NetworkNotFoundError as NetworkNotFoundError
    from container_runner.errors import NodeLostError as NodeLostError
    from container_runner.errors import OutOfMemoryError as OutOfMemoryError
    from container_runner.errors import PermissionDeniedError as PermissionDeniedError
    from container_runner.errors import PortError as PortError
    from container_runner.errors import PromptRefusedError as PromptRefusedError
    from container_runner.errors import ProtocolError as ProtocolError
    from container_runner.errors import PullFailedError as PullFailedError
    from container_runner.errors import RequestRefusedError as RequestRefusedError
    from container_runner.errors import ResultTimeoutError as ResultTimeoutError
    from container_runner.errors import SessionNotFoundError as SessionNotFoundError
    from container_runner.errors import StateError as StateError
    from container_runner.errors import TotalTimeoutError as TotalTimeoutError
    from container_runner.errors import UnsupportedRuntimeError as UnsupportedRuntimeError
    from container_runner.errors import WorkspaceBusyError as WorkspaceBusyError
    from container_runner.errors import WorkspaceError as WorkspaceError
    from container_runner.fleet.batch import Watch as Watch
    from container_runner.fleet.batch import run_batch as run_batch
    from container_runner.fleet.job import Job as Job
    from container_runner.fleet.job import JobResult as JobResult
    from container_runner.fleet.node import Fleet as Fleet
    from container_runner.fleet.node import Node as Node
    from container_runner.fleet.ray import RayFleet as RayFleet
    from container_runner.fleet.results import ResultFile as ResultFile
    from container_runner.options import Agent as Agent
    from container_runner.options import ExecuteOptions as ExecuteOptions
    from container_runner.records.records import Records as Records
    from container_runner.records.records import RunRecord as RunRecord
    from container_runner.records.summary import RunSummary as RunSummary
    from container_runner.runner import ContainerRunner as ContainerRunner
    from container_runner.runner import RunResult as RunResult
    from container_runner.runner.blocking import run as run
    from container_runner.runner.kept import ContainerManager as ContainerManager
    from container_runner.runner.kept import KeptContainer as KeptContainer
    from container_runner.runner.warm import WarmSessions as WarmSessions
    from container_runner.session.asks import Allow as Allow
    from container_runner.session.asks import Deny as Deny
    from container_runner.session.asks import Image as Image
    from container_runner.session.asks import PermissionRequest as PermissionRequest
    from container_runner.session.asks import Question as Question
    from container_runner.session.asks import QuestionPart as QuestionPart
    from container_runner.session.asks import Reply as Reply
    from container_runner.session.asks import ToolAnswer as ToolAnswer
    from container_runner.session.hooks import Hook as Hook
    from container_runner.session.hooks import HookCall as HookCall
    from container_runner.session.session import Session as Session
    from container_runner.session.session import Turn as Turn
    from container_runner.session.tools import Tool as Tool
    from container_runner.session.tools import ToolError as ToolError
    from container_runner.session.tools import tool as tool
    from container_runner.stream.blocks import ContentBlock as ContentBlock
    from container_runner.stream.blocks import DeferredToolUse as DeferredToolUse
    from container_runner.stream.blocks import RateLimitInfo as RateLimitInfo
    from container_runner.stream.blocks import ServerToolResultBlock as ServerToolResultBlock
    from container_runner.stream.blocks import ServerToolUseBlock as ServerToolUseBlock
    from container_runner.stream.blocks import TextBlock as TextBlock
    from container_runner.stream.blocks import ThinkingBlock as ThinkingBlock
    from container_runner.stream.blocks import ToolResultBlock as ToolResultBlock
    from container_runner.stream.blocks import ToolUseBlock as ToolUseBlock
    from container_runner.stream.blocks import UnknownBlock as UnknownBlock
    from container_runner.stream.blocks import Usage as Usage
    from container_runner.stream.lines import OversizedLine as OversizedLine
    from container_runner.stream.messages import AgentMessage as AgentMessage
    from container_runner.stream.messages import ApiRetryMessage as ApiRetryMessage
    from container_runner.stream.messages import AssistantMessage as AssistantMessage
    from container_runner.stream.messages import ConnectionDenied as ConnectionDenied
    from container_runner.stream.messages import ConversationResetMessage as ConversationResetMessage
    from container_runner.stream.messages import ErrorMessage as ErrorMessage
    from container_runner.stream.messages import HookEventMessage as HookEventMessage
    from container_runner.stream.messages import Message as Message
    from container_runner.stream.messages import NoticeMessage as NoticeMessage
    from container_runner.stream.messages import OutputLine as OutputLine
    from container_runner.stream.messages import RateLimitEvent as RateLimitEvent
    from container_runner.stream.messages import ResultMessage as ResultMessage
    from container_runner.stream.messages import StreamEvent as StreamEvent
    from container_runner.stream.messages import SystemMessage as SystemMessage
    from container_runner.stream.messages import TaskNotificationMessage as TaskNotificationMessage
    from container_runner.stream.messages import TaskProgressMessage as TaskProgressMessage
    from container_runner.stream.messages import TaskStartedMessage as TaskStartedMessage
    from container_runner.stream.messages import TaskUpdatedMessage as TaskUpdatedMessage
    from container_runner.stream.messages import ToolProgressMessage as ToolProgressMessage
    from container_runner.stream.messages import UnknownMessage as UnknownMessage
    from container_runner.stream.messages import UserMessage as UserMessage
    from container_runner.stream.messages import parse_line as parse_line
    from container_runner.stream.reader import Reader as Reader
    from container_runner.workspace.branch import Branched as Branched
    from container_runner.workspace.changes import Applied as Applied
    from container_runner.workspace.changes import ChangedFile as ChangedFile
    from container_runner.workspace.changes import Changes as Changes
    from container_runner.workspace.changes import Commit as Commit
    from container_runner.workspace.findings import Finding as Finding

__version__ = "0.1.0"

_NAMES = {
    "agents": (
        "KINDS AgentRuntime ClaudeRuntime CodexRuntime Command CommandLineRuntime CommandRuntime CopilotRuntime "
        "Credentials Describes GeminiRuntime OpenCodeRuntime PythonRuntime QwenRuntime Runtime"
    ),
    "agents.acp": "AcpRuntime",
    "box.environment": "ContainerEnv build_container_env",
    "box.mounts": "ContainerMounts build_container_mounts",
    "box.plan": "Plan",
    "box.translator": "Translator",
    "box.user": "User",
    "config.container": "ContainerConfig",
    "config.limits": "RecordLimits",
    "config.servers": "HostServer",
    "config.values": "Injection Mount PathMapping PortBinding Tmpfs",
    "doctor.checks": "Check",
    "doctor.doctor": "examine",
    "engine.engine": "Engine",
    "errors": (
        "AgentError AgentFailedError AgentKilledError AuthenticationError CleanupError CommandNotExecutableError "
        "CommandNotFoundError ConfigError ConflictError ContainerGoneError ContainerRunnerError "
        "ControlTimeoutError DiskFullError DiskLimitError EngineArgumentError EngineBusyError EngineError "
        "EngineNotFoundError "
        "EnginePermissionError EngineTimeoutError EngineUnreachableError ExecLostError GitNotFoundError "
        "IdleTimeoutError ImageNotFoundError ImageUnsuitableError IncompleteOutputError MountError NameTakenError "
        "NetworkNotFoundError NodeLostError OutOfMemoryError PermissionDeniedError PortError PromptRefusedError "
        "ProtocolError PullFailedError RequestRefusedError ResultTimeoutError SessionNotFoundError StateError "
        "TotalTimeoutError UnsupportedRuntimeError WorkspaceBusyError WorkspaceError"
    ),
    "fleet.batch": "Watch run_batch",
    "fleet.job": "Job JobResult",
    "fleet.node": "Fleet Node",
    "fleet.ray": "RayFleet",
    "fleet.results": "ResultFile",
    "options": "Agent ExecuteOptions",
    "records.records": "Records RunRecord",
    "records.summary": "RunSummary",
    "runner": "ContainerRunner RunResult",
    "runner.blocking": "run",
    "runner.kept": "ContainerManager KeptContainer",
    "runner.warm": "WarmSessions",
    "session.asks": "Allow Deny Image PermissionRequest Question QuestionPart Reply ToolAnswer",
    "session.hooks": "Hook HookCall",
    "session.session": "Session Turn",
    "session.tools": "Tool ToolError tool",
    "stream.blocks": (
        "ContentBlock DeferredToolUse RateLimitInfo ServerToolResultBlock ServerToolUseBlock TextBlock "
        "ThinkingBlock ToolResultBlock ToolUseBlock UnknownBlock Usage"
    ),
    "stream.lines": "OversizedLine",
    "stream.messages": (
        "AgentMessage ApiRetryMessage AssistantMessage ConversationResetMessage ErrorMessage HookEventMessage "
        "ConnectionDenied Message NoticeMessage OutputLine RateLimitEvent ResultMessage StreamEvent SystemMessage "
        "TaskNotificationMessage TaskProgressMessage TaskStartedMessage TaskUpdatedMessage ToolProgressMessage "
        "UnknownMessage UserMessage parse_line"
    ),
    "stream.reader": "Reader",
    "workspace.branch": "Branched",
    "workspace.changes": "Applied ChangedFile Changes Commit",
    "workspace.findings": "Finding",
}
"""The public names, by the module that defines them. It is imported when one of them is first used, so that a program
that only asks for the version, or pytest looking for plugins, does not wait for the rest."""

_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
