"""Every way a run can go wrong, as a tree.

    ContainerRunnerError
    ├── ConfigError                   a value we refuse, before anything is started
    ├── UnsupportedRuntimeError       a runtime that can not say which command it runs
    ├── StateError                    the state folder can not be read or written
    ├── WorkspaceError                the workspace can not be carried into a box, or the work not out of it
    │   ├── WorkspaceBusyError        a run of the other sort is at work in it
    │   ├── ConflictError             the work does not go into what the folder is now
    │   └── GitNotFoundError          no git on this machine, or one that is too old
    ├── EngineError                   the box failed; the agent is not to blame
    │   ├── EngineNotFoundError       no docker, no podman
    │   ├── EngineUnreachableError    the engine's daemon does not answer
    │   ├── EnginePermissionError     we may not speak to it
    │   ├── EngineTimeoutError        it answered too late
    │   ├── EngineBusyError           it is overloaded; another try may work
    │   ├── EngineArgumentError       it refused a flag
    │   ├── DiskFullError             its disk is full
    │   ├── ImageNotFoundError        the image is not on this machine
    │   ├── ImageUnsuitableError      the image lacks a tool that every run needs
    │   ├── PullFailedError           the image could not be fetched
    │   ├── NameTakenError            another container has the name
    │   ├── MountError                a bind source is missing
    │   ├── NetworkNotFoundError      the network does not exist
    │   ├── PortError                 a port of the host can not be opened
    │   ├── ContainerGoneError        the container ended while the agent ran
    │   ├── ExecLostError             the engine's client hangs though the agent has ended
    │   ├── NodeLostError             a node of a fleet does not answer any more
    │   └── CleanupError              something of ours could not be removed
    └── AgentError                    the box worked; the agent did not
        ├── CommandNotFoundError      the image has no such program
        ├── CommandNotExecutableError it is there and can not be run
        ├── AgentFailedError          it exited with a code that is not 0, or said that it failed
        ├── SetupFailedError          what comes before it failed, and it was not started
        ├── CheckFailedError          what comes after it says that its work is not good
        ├── AgentKilledError          a signal ended it
        ├── OutOfMemoryError          the kernel ended it for its memory
        ├── DiskLimitError            it has added more to this machine's disk than it may
        ├── IncompleteOutputError     its output ended without a result
        ├── PromptRefusedError        it did not take the prompt
        ├── PermissionDeniedError     it gave up because it was not permitted to use a tool
        ├── AuthenticationError       the API does not take the agent's key or login
        ├── SessionNotFoundError      there is no such session to go on with
        ├── ProtocolError             a live agent broke the protocol of its session
        ├── ControlTimeoutError       a live agent did not answer a request, an interrupt say
        ├── RequestRefusedError       a live agent does not do what it was asked for; its session goes on
        ├── TotalTimeoutError         it ran too long
        ├── IdleTimeoutError          it was silent too long
        └── ResultTimeoutError        it gave its result, had nothing left to do, and did not leave

`ContainerRunner.execute` raises the first two, and `EngineNotFoundError` for a program that the configuration names and
that is not there; the others are one last `ErrorMessage`. Everything else in the package raises them.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ContainerRunnerError(Exception):
    """The base of all errors of this package.

    Args:
        message: what happened, in one sentence. Never an argv, never a secret.
        next_step: what to do about it; by default the class's own advice.
        exit_code: the exit code of the process that failed, or None.
        stderr: the last of what it wrote to stderr, already bounded and scrubbed.
    """

    kind: ClassVar[str] = "error"
    """A stable name for programs, the same as `ErrorMessage.kind`."""

    cli_exit_code: ClassVar[int] = 1
    """What `container-runner` exits with when this ends it; docs/reference/errors.md has the table."""

    advice: ClassVar[str] = "If this does not help, report it with all that is above."

    def __init__(
        self, message: str, *, next_step: str | None = None, exit_code: int | None = None, stderr: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = self.advice if next_step is None else next_step
        self.exit_code = exit_code
        self.stderr = stderr
        self.result: Any = None
        """What the run had come to, a `RunResult`, where `ContainerRunner.run` raises this; otherwise None."""

    def __str__(self) -> str:
        tail = f"\n{self.stderr.rstrip()}" if self.stderr.strip() else ""
        return f"{self.message}{tail}\n{self.next_step}"


class ConfigError(ContainerRunnerError):
    """A configuration value that we refuse.

    Args:
        field: the field's name, as the configuration spells it ("volumes[0]", "memory").
        value: the value as it was given; None if there is none. It is shown, so of a secret pass "…", which is not.
        allowed: what would have been accepted, in words, as the end of "it must be ...".
        source: the file or the flag that the value came from, or None for Python.
        told: all of it in words, without the source, where "FIELD must be ..." does not say it well.
        at: the line in the source, or "line:column"; "" if it is not known.
    """

    kind = "config"
    cli_exit_code = 2
    advice = "Give it a value that the message allows."

    def __init__(self, field: str, value: object, allowed: str, *, source: str | None = None,
                 told: str | None = None, at: str = "") -> None:  # fmt: skip
        try:
            shown = repr(value)
        except Exception:  # an int of 5,000 digits, a list 5,000 deep
            shown = "'…'"
        if len(shown) > 200:
            shown = f"{shown[:200]}… ({len(shown)} characters)"
        if told is None and value is None:
            told = f"{field} is missing: give {allowed}"
        elif told is None:
            told = f"{field} must be {allowed}" + ("" if shown == "'…'" else f"; got {shown}")
        where = f"{source}{at and ':'}{at}: " if source else ""
        super().__init__(f"{where}{told}.", next_step=f"Allowed: {allowed}.")
        self.field, self.value, self.allowed = field, value, allowed
        self.source, self.told, self.at = source, told, at

    def __str__(self) -> str:
        return self.message  # it says already what to do

    def called(self, name: str, *, source: str | None = None, at: str = "") -> ConfigError:
        """The same error, with the field under the name that somebody has typed, and the file or flag it came from."""
        told = self.told.replace(self.field, name, 1) if self.field else f"{name}{self.told}"
        return ConfigError(name, self.value, self.allowed, source=source, told=told, at=at or self.at)


class UnsupportedRuntimeError(ContainerRunnerError):
    """The runtime can not be run in a container, because it can not describe its command."""

    kind = "unsupported_runtime"
    cli_exit_code = 2
    advice = "Give it a method `command(self, options, *, contained)` that returns a Command(argv=..., stdin=...)."


class StateError(ContainerRunnerError):
    """The state folder can not be read or written: a full disk, or a folder of somebody else's."""

    kind = "state"
    cli_exit_code = 5
    advice = "Make room or give access to the state folder, or name another one with --state-dir."


class WorkspaceError(ContainerRunnerError):
    """The workspace can not be carried into a box, or what came out is not taken over: *path*, if not all of it."""

    kind = "workspace"
    cli_exit_code = 5
    advice = "Nothing of the workspace was changed: fix what is said above, and run it again."

    def __init__(self, message: str, *, path: bytes | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.path = path


class WorkspaceBusyError(WorkspaceError):
    """A run that carries it keeps out one that writes to it, and the other way round."""

    kind = "workspace_busy"
    advice = "Wait for the end of that run: `container-runner ps` shows it."


class ConflictError(WorkspaceError):
    """What an agent did does not go into what the folder or branch is now; *paths* are in the way. Nothing changed."""

    kind = "conflict"
    cli_exit_code = 3
    advice = "Take the work as a branch with `container-runner branch NAME`, and merge that as you are used to."

    def __init__(self, message: str, *, paths: tuple[bytes, ...] = (), **facts: Any) -> None:
        super().__init__(message, path=paths[0] if paths else None, **facts)
        self.paths = paths

    def __str__(self) -> str:
        rows = [f"  {path.decode('utf-8', 'backslashreplace')!r}"[:500] for path in self.paths[:20]]
        rows += [f"  and {len(self.paths) - 20} more"] if len(self.paths) > 20 else []
        return "\n".join([self.message, *rows, self.next_step])


class GitNotFoundError(WorkspaceError):
    kind = "git_not_found"
    cli_exit_code = 3
    advice = "Install git 2.38 or newer, or mount the workspace with --workspace-mode=rw, which needs none."


class EngineError(ContainerRunnerError):
    """The engine, not the agent, failed, in a way that has no class of its own."""

    kind = "engine"
    cli_exit_code = 5
    advice = "Its own words are above, if it had any; its log may say more."


class EngineNotFoundError(EngineError):
    kind = "engine_not_found"
    cli_exit_code = 3
    advice = "Install docker or podman, or name the program with --engine or CONTAINER_RUNNER_ENGINE."


class EngineUnreachableError(EngineError):
    kind = "engine_unreachable"
    cli_exit_code = 3
    advice = "Start the engine, or check DOCKER_HOST; `container-runner doctor` prints the line for this machine."


class EnginePermissionError(EngineError):
    kind = "engine_permission"
    cli_exit_code = 3
    advice = "Add yourself to the group that owns the engine's socket, or use rootless podman."


class EngineTimeoutError(EngineError):
    kind = "engine_timeout"
    cli_exit_code = 3
    advice = "The engine is stuck or overloaded: see whether `docker ps` answers, then try again."


class EngineBusyError(EngineError):
    kind = "engine_busy"
    cli_exit_code = 3
    advice = "The engine is overloaded: try again, with fewer agents at a time."


class EngineArgumentError(EngineError):
    kind = "engine_argument"
    advice = "The engine refused a flag: look at extra_args, and at the version of the engine."


class DiskFullError(EngineError):
    kind = "disk_full"
    advice = "Make room: `docker system df` or `podman system df` tells what takes it, `system prune` frees some."


class ImageNotFoundError(EngineError):
    kind = "image_not_found"
    cli_exit_code = 4
    advice = "Make one with `container-runner image build`, or allow fetching it with --pull=missing."


class ImageUnsuitableError(EngineError):
    kind = "image_unsuitable"
    cli_exit_code = 4
    advice = "The image needs sh, chmod, cp, head, mkdir, mkfifo, rm, sleep and wc (coreutils or busybox have them)."


class PullFailedError(EngineError):
    kind = "pull_failed"
    cli_exit_code = 4
    advice = "Check the image's name, the network and your login with `docker pull`."


class NameTakenError(EngineError):
    kind = "name_taken"
    advice = "Run it again: names are random, so this is a coincidence."


class MountError(EngineError):
    kind = "mount"
    advice = "Make sure that the folder exists on the machine where the engine runs."


class NetworkNotFoundError(EngineError):
    kind = "network_not_found"
    advice = "Create it with the engine's own `network create NAME`, or use gateway, bridge or none with --network."


class PortError(EngineError):
    kind = "port"
    advice = "Name another port of the host with --port, as 8080:80; rootless engines may open those from 1024."


class ExecLostError(EngineError):
    kind = "exec_lost"
    cli_exit_code = 6
    advice = "The engine lost its hold of the agent: look at its log, then resume the session."


class ContainerGoneError(EngineError):
    kind = "container_gone"
    cli_exit_code = 6
    advice = "Somebody or something removed the container: look at the engine's log, and run it again."


class NodeLostError(EngineError):
    """The *node* of a fleet does not answer any more. An agent may have been at work there; its lease ends it."""

    kind = "node_lost"
    cli_exit_code = 6
    advice = "Look at the node, then run the batch again: what has no result is run on the nodes that are left."

    def __init__(self, message: str, *, node: str = "", exit_code: int | None = None, stderr: str = "") -> None:
        super().__init__(message, exit_code=exit_code, stderr=stderr)
        self.node = node


class CleanupError(EngineError):
    """Something of ours is still there: the containers and volumes that are *left*, by their names."""

    kind = "cleanup"
    cli_exit_code = 6
    advice = "Run `container-runner prune`."

    def __init__(self, message: str, *, left: tuple[str, ...] = (), stderr: str = "") -> None:
        super().__init__(message, stderr=stderr)
        self.left = left


class AgentError(ContainerRunnerError):
    """The agent, not the engine, failed."""

    kind = "agent"
    advice = "Read what the agent said, above or by `container-runner logs`."


class CommandNotFoundError(AgentError):
    kind = "command_not_found"
    cli_exit_code = 127
    advice = "Install the agent in the image, or name another image with --image."


class CommandNotExecutableError(AgentError):
    kind = "command_not_executable"
    cli_exit_code = 126
    advice = "Make the program executable in the image, for the user that the agent runs as."


class AgentFailedError(AgentError):
    kind = "agent_failed"


class SetupFailedError(AgentError):
    kind = "setup_failed"
    advice = "No agent was started."


class CheckFailedError(AgentError):
    kind = "check_failed"
    advice = "What the agent did is there: resume the session to let it go on."


class AgentKilledError(AgentError):
    """A *signal* ended the agent that we did not send."""

    kind = "agent_killed"
    cli_exit_code = 8
    advice = "Something in the container killed it; if it was the memory limit, raise --memory."

    def __init__(self, message: str, *, signal: int, exit_code: int | None = None, stderr: str = "") -> None:
        super().__init__(message, exit_code=exit_code, stderr=stderr)
        self.signal = signal


class OutOfMemoryError(AgentError):
    kind = "out_of_memory"
    cli_exit_code = 9
    advice = "Raise the limit with --memory, or give the agent a smaller task."


class DiskLimitError(AgentError):
    """It has *added* so many bytes, most of them to *folder*, and may add *limit*; 0 and "" if that is not known."""

    kind = "disk_limit"
    cli_exit_code = 9
    advice = "What it wrote is there: look at it, as with `du`, then raise --disk-limit or resume the session."
    limit = added = 0
    folder = ""


class IncompleteOutputError(AgentError):
    kind = "incomplete"
    cli_exit_code = 7
    advice = "Resume the session to let the agent finish."


class PromptRefusedError(AgentError):
    kind = "prompt_refused"
    advice = "Shorten the prompt, or put the long part into a file in the workspace."


class PermissionDeniedError(AgentError):
    """The agent calls it a success that it gave up: the last that it was told is that it may not use these `tools`."""

    kind = "permission_denied"
    advice = "Permit the tool with --allowed-tool or another --permission-mode, or ask for what needs none."

    def __init__(self, message: str, *, tools: tuple[str, ...] = (), **facts: Any) -> None:
        super().__init__(message, **facts)
        self.tools = tools


class AuthenticationError(AgentError):
    kind = "auth"
    advice = "Set a valid ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN; `container-runner doctor` tells which is used."


class SessionNotFoundError(AgentError):
    kind = "session_not_found"
    cli_exit_code = 2
    advice = "See `container-runner sessions list`, with the --agent or --workspace of the run that began the session."


class ProtocolError(AgentError):
    kind = "protocol"
    advice = "Resume the session in a new one; if it happens again, try another version of the agent."


class ControlTimeoutError(AgentError):
    kind = "control_timeout"
    cli_exit_code = 124
    advice = "See by `container-runner logs` what it said. Resume its session, or allow more time by control_timeout."


class RequestRefusedError(AgentError):
    kind = "request_refused"
    advice = "The session goes on: ask for something that this agent has."


class TotalTimeoutError(AgentError):
    kind = "total_timeout"
    cli_exit_code = 124
    advice = "Allow more time with --timeout, or resume the session."


class IdleTimeoutError(AgentError):
    kind = "idle_timeout"
    cli_exit_code = 124
    advice = "Allow a longer silence with --idle-timeout, or resume the session."


class ResultTimeoutError(AgentError):
    kind = "result_timeout"
    cli_exit_code = 124
    advice = "Its result has come. If it was still at work, a hook of its end say, allow more with --result-timeout."


def error_class(kind: str) -> type[ContainerRunnerError]:
    """The class of the errors of this `kind`; the base of all for one that we do not know."""
    kinds = [ContainerRunnerError]
    for known in kinds:
        kinds += known.__subclasses__()
    return next((known for known in kinds if known.kind == kind), ContainerRunnerError)
