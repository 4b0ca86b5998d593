"""What an engine's client says when it fails, and the error that it means. Pure: text in, an error out."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from typing import Final

from container_runner.box.guest import Report
from container_runner.box.plan import Plan
from container_runner.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    ConfigError,
    ContainerGoneError,
    ContainerRunnerError,
    EngineArgumentError,
    EngineBusyError,
    EngineError,
    EngineNotFoundError,
    EnginePermissionError,
    EngineUnreachableError,
    ImageNotFoundError,
    ImageUnsuitableError,
    MountError,
    NameTakenError,
    NetworkNotFoundError,
    PortError,
    PullFailedError,
)
from container_runner.stream.command import Completed

_FAILURES: Final[tuple[tuple[str, type[EngineError], str], ...]] = (
    (r"permission denied while trying to connect|dial unix [^\n]*permission denied", EnginePermissionError,
     "You may not speak to the engine's daemon."),
    (r"Cannot connect to the Docker daemon|failed to connect to the docker API|error during connect"
     r"|unable to connect to Podman|Cannot connect to Podman|dial unix [^\n]*(no such file|connection refused)",
     EngineUnreachableError, "The engine's daemon does not answer."),
    (r"Unable to find image|initializing source|pull access denied|manifest unknown|toomanyrequests|pinging container"
     r" registry|error pulling image", PullFailedError, "The image could not be pulled."),
    (r"No such image|image not known", ImageNotFoundError, "The image is not on this machine."),
    (r"is already in use by", NameTakenError, "A container with this name exists already."),
    (r"exec format error", ImageUnsuitableError, "The image is for another processor than this machine has."),
    (r"unresolvable CDI devices|could not select device driver", EngineArgumentError,
     "There is no such graphics processor, or no driver for it."),
    (r"bind source path does not exist|statfs [^\n]*no such file", MountError, "A folder to mount does not exist."),
    (r"(?:unable to find )?network (?:with name or ID )?(?P<name>[^\s:]+)(?:: network)? not found"
     r"|network [^\n]* not found|unable to find network", NetworkNotFoundError, "The network {name} does not exist."),
    (r"cannot expose privileged port (?P<name>\d+)", PortError,
     "The port {name} may only be opened by root."),
    (r"port is already allocated|address already in use", PortError,
     "A port of the host is in use already."),
    (r"cannot assign requested address", PortError, "This machine has no such address to listen on."),
    (r"No such container|no such container|no container with name or ID|container has already been removed",
     ContainerGoneError, "The container is not there any more."),
    (r"is not running|container state improper|is paused, unpause|cannot exec in a stopped (state|container)"
     r"|error writing config to pipe", ContainerGoneError,
     "The container does not run."),
    (r'exec: "sh": executable file not found|exec: "sh": stat sh|executable file `sh` not found', ImageUnsuitableError,
     "The image has no shell."),
    (r"resource temporarily unavailable|device or resource busy|context deadline exceeded|connection reset by peer"
     r"|i/o timeout|database is locked|TLS handshake timeout|too many open files|unexpected EOF"
     r"|conmon bytes|no logs from conmon", EngineBusyError,
     "The engine could not do it just now."),
    (r"unknown flag|unknown shorthand flag|invalid argument|invalid reference format|flag needs an argument|bad flag"
     r"|repository name must be lowercase|Range of CPUs|invalid value|[Uu]nknown (or invalid )?runtime"
     r"|OCI runtime \"[^\"]*\" not found",
     EngineArgumentError, "The engine refused an argument."),
)  # fmt: skip
"""What the engines really say, and what it means. The first match counts, and gives the name."""


def classify(done: Completed, verb: str) -> EngineError:
    """The error for a command of the engine that failed. A pure function of what it printed.

    docker prints what keeps an exec from starting on stdout, podman on stderr, so both are looked at.
    """
    said = f"{done.stderr}\n{done.text[:4096]}" if len(done.stdout) < 65536 else done.stderr
    for pattern, kind, message in _FAILURES:
        if match := re.search(pattern, said):
            told = message.replace("{name}", match.groupdict().get("name") or "").replace("  ", " ")
            return kind(told, exit_code=done.returncode, stderr=_relevant(said))
    message = f"The engine's `{verb}` failed with code {done.returncode}."
    return EngineError(message, exit_code=done.returncode, stderr=_relevant(said))


def spawn_error(command: Sequence[str], error: OSError) -> EngineError | ConfigError:
    """The error for a client that could not even be started."""
    if error.errno == errno.E2BIG:
        longest = max(len(os.fsencode(word)) for word in command)
        return ConfigError("arguments", f"{longest} bytes in the longest", "less than 128 KiB each and 2 MB in all")
    if isinstance(error, PermissionError):
        return EngineNotFoundError(f"The program {command[0]!r} can not be run: {error.strerror}.")
    if isinstance(error, FileNotFoundError):
        return EngineNotFoundError(f"There is no program {command[0]!r} on this machine.")
    return EngineError(f"The engine's client could not be started: {error.strerror}.")


def _relevant(said: str) -> str:
    """What it said, without what it says every time and the id of a container that never ran, cut to its end."""
    noise = (
        "Emulate Docker CLI using podman",
        "falling back to the default CNI",
        "See 'docker run --help'",
        "Run 'docker",
    )
    lines = [line.rstrip("\r") for line in said.split("\n") if line.strip() and not any(n in line for n in noise)]
    return "\n".join(line for line in lines if not re.fullmatch("[0-9a-f]{64}", line.strip()))[-4096:]


def refused(report: Report, plan: Plan, exit_code: int, stderr: str) -> ContainerRunnerError:
    """The error for what our script in the container said instead of starting the agent."""
    image, program, detail = plan.image, plan.program, ", ".join(report.detail)
    kinds: dict[str, tuple[type[ContainerRunnerError], str]] = {
        "missing": (ImageUnsuitableError, f"The image {image} lacks {detail}."),
        "other-sh": (ImageUnsuitableError, f"The sh of {image} must be dash, bash or busybox, not ksh or zsh."),
        "unsealed": (ImageUnsuitableError, f"The shell of the image {image} can not be copied to run unread."),
        "mounts": (
            MountError,
            f"What is mounted at {detail or 'a planned place'} is not what was planned: a path was replaced while the "
            "container started, or the engine sees other folders than we do.",
        ),
        "no-command": (CommandNotFoundError, f"There is no {program!r} in the image {image}."),
        "not-executable": (
            CommandNotExecutableError,
            f"{program!r} in the image {image} can not be run by user {plan.user}.",
        ),
        "prompt-lost": (EngineBusyError, "The container has no room for the prompt."),
    }
    kind, message = kinds[report.refusal or ""]
    exit_code = {"no-command": 127, "not-executable": 126}.get(report.refusal or "", exit_code)  # as a shell has it
    return kind(message, exit_code=exit_code, stderr=stderr)


def scrub(text: str, values: Mapping[str, str]) -> str:
    """*text* with the values of variables replaced by their names. One of less than 4 characters tells nothing."""
    for name, value in sorted(values.items(), key=lambda item: -len(item[1])):
        if len(value) >= 4:
            text = text.replace(value, f"[{name}]")
    return text
