"""What an engine's client says when it fails, and the error that it means. Pure: text in, an error out."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from typing import Final

from container_runner.box.guest import Report
from container_runner.box.plan import Plan
from container_runner.errors import (
    CheckFailedError,
    CommandNotExecutableError,
    CommandNotFoundError,
    ConfigError,
    ContainerGoneError,
    ContainerRunnerError,
    DiskFullError,
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
    SetupFailedError,
)
from container_runner.stream.command import Completed

NO_SOURCE: Final = "A folder to mount does not exist."
_MISSED: Final = re.compile(r"(?:path does not exist: |statfs )(?P<path>/.*?)(?:\.?$|: no such)", re.MULTILINE)
OTHER_FILES: Final = "The engine does not see this machine's files: it mounts folders of its own."

_CERTIFICATES: Final = (
    "Set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to the folder with ca.pem, cert.pem and key.pem for this engine."
)

_FAILURES: Final[tuple[tuple[str, type[EngineError], str] | tuple[str, type[EngineError], str, str], ...]] = (
    (r"no space left on device|disk quota exceeded|not enough free space|ENOSPC", DiskFullError,
     "There is no room left on the engine's disk."),
    (r'context "(?P<name>[^"]*)"[^\n]* (?:not found|does not exist)', EngineUnreachableError,
     "There is no docker context {name}.",
     "See those that there are with `docker context ls`, and set DOCKER_CONTEXT to one of them or to nothing."),
    (r"client version \S+ is too (?:old|new)|(?:Minimum|Maximum) supported API version", EngineUnreachableError,
     "The engine's client is too old or too new for its daemon.", "Update the older of the two."),
    (r"Docker Desktop is (?:manually )?paused", EngineUnreachableError, "Docker Desktop is paused.",
     "Unpause it in its menu."),
    (r"authorization denied by plugin", EnginePermissionError, "A plugin of the engine's does not allow it.",
     "Ask who runs the engine for leave to do what its words say."),
    (r"newuidmap|newgidmap|not[^\n]* enough IDs available|no subuid ranges", EnginePermissionError,
     "This user has too few user ids for a rootless container.",
     "Give it some in /etc/subuid and /etc/subgid, as with `usermod --add-subuids 100000-165535`, and type `podman"
     " system migrate`."),
    (r"Mounts denied|is not shared from the host|mkdir /host_mnt/|error while creating mount source path", MountError,
     "A folder is not shared with the engine's virtual machine.",
     "Share it in the settings of Docker Desktop, below Resources, File sharing."),
    (r'error mounting "(?P<name>[^"]+)" to rootfs|error stat\S* [^\n]*permission denied|statfs [^\n]*permission denied',
     MountError, "The engine may not mount a folder {name}.",
     "See that root may enter it: a FUSE file system needs the option allow_other, and NFS no_root_squash."),
    (r"[Ee]xec format error|does not match the (?:specified|detected|expected) [^\n]*platform"
     r"|no matching manifest for|no image found in image index for architecture", ImageUnsuitableError,
     "The image is for another CPU than this machine's.",
     "Build or pull it for this machine, as with `docker pull --platform`."),
    (r"short-name [^\n]* did not resolve", PullFailedError, "The image's name does not say where it is to be found.",
     "Write its registry too, as in docker.io/library/debian."),
    (r"gathering device information[^\n]*custom device \"(?P<name>[^\"]*)\"|stat (?P<device>/dev/\S+): no such file",
     EngineArgumentError, "There is no device {name} on the engine's machine.", "Look at --device, or leave it away."),
    (r"could not select device driver|nvidia-container-cli|unresolvable CDI devices", EngineArgumentError,
     "The engine can give no GPU.", "Install the NVIDIA container toolkit on its machine, or leave --gpus away."),
    (r"address pools? [^\n]*(?:exhausted|fully subnetted)|no available IPv4 addresses|non-overlapping IPv4 address",
     EngineBusyError, "The engine has no network address left.",
     "Remove networks and containers that nobody uses with `docker network prune`, or start fewer agents at a time."),
    (r"setting rlimits?|set ulimit|(?i:rlimit[^\n]*operation not permitted)", EngineArgumentError,
     "The engine may not set a limit of --ulimit or of its own configuration.",
     "Ask for less, since it can only lower them here: --ulimit, or default_ulimits in containers.conf."),
    (r"permission denied while trying to connect|dial unix [^\n]*permission denied", EnginePermissionError,
     "You may not speak to the engine's daemon."),
    (r"HTTP request to an HTTPS server", EngineUnreachableError, "The engine's daemon wants TLS.", _CERTIFICATES),
    (r"\(--tlsverify\) enabled|tls: bad certificate|tls: certificate required", EnginePermissionError,
     "The engine's daemon does not take this certificate.", _CERTIFICATES),
    (r"error during connect[^\n]*x509: ", EngineUnreachableError, "The engine's certificate is not trusted.",
     _CERTIFICATES),
    (r"unable to resolve docker endpoint", EngineUnreachableError, "docker does not know how to reach its daemon.",
     "Look at DOCKER_HOST, DOCKER_CONTEXT, `docker context ls` and DOCKER_CERT_PATH."),
    (r"Cannot connect to the Docker daemon|failed to connect to the docker API|error during connect"
     r"|unable to connect to Podman|Cannot connect to Podman|dial unix [^\n]*(no such file|connection refused)",
     EngineUnreachableError, "The engine's daemon does not answer."),
    (r"Unable to find image|initializing source|pull access denied|manifest unknown|toomanyrequests|pinging container"
     r" registry|error pulling image", PullFailedError, "The image could not be pulled."),
    (r"No such image|image not known", ImageNotFoundError, "The image is not on this machine."),
    (r"is already in use by", NameTakenError, "A container with this name exists already."),
    (r"bind source path does not exist|statfs [^\n]*no such file", MountError, NO_SOURCE),
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
    for pattern, kind, message, *step in _FAILURES:
        if match := re.search(pattern, said):
            name = next(filter(None, match.groupdict().values()), "")
            told = message.replace(" {name}", f" {name}" if name else "")
            next_step = step[0] if step else None
            return kind(told, next_step=next_step, exit_code=done.returncode, stderr=_relevant(said))
    message = f"The engine's `{verb}` failed with code {done.returncode}."
    return EngineError(message, exit_code=done.returncode, stderr=_relevant(said))


def sees_other_files(error: EngineError) -> bool:
    """Whether an engine that could not start a container mounts another machine's files: what it misses is here."""
    if not isinstance(error, MountError):
        return False
    missed = _MISSED.search(error.stderr) if error.message == NO_SOURCE else None
    return error.message == OTHER_FILES or (missed is not None and os.path.lexists(missed["path"]))


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


def refused(
    report: Report, plan: Plan, exit_code: int, stderr: str, *, for_missing: str | None = None
) -> ContainerRunnerError:
    """The error for what our script in the container said instead of starting the agent.

    Args:
        for_missing: what to do about an agent that is not in the image; None: what the class advises.
    """
    image, program, detail = plan.image, plan.program, ", ".join(report.detail)
    kinds: dict[str, tuple[type[ContainerRunnerError], str]] = {
        "missing": (ImageUnsuitableError, f"The image {image} lacks {detail}."),
        "other-sh": (ImageUnsuitableError, f"The sh of {image} must be dash, bash or busybox, not ksh or zsh."),
        "unsealed": (ImageUnsuitableError, f"The shell of the image {image} can not be copied to run unread."),
        "elsewhere": (MountError, OTHER_FILES),
        "mounts": (
            MountError,
            f"What is mounted at {detail or 'a planned place'} is not what was planned: a path was replaced while the "
            "container started, or the engine sees other folders than we do.",
        ),
        "nameless": (EngineBusyError, f"The image {image} has no line in /etc/passwd for the user {plan.user}."),
        "no-command": (CommandNotFoundError, f"There is no {program!r} in the image {image}."),
        "not-executable": (
            CommandNotExecutableError,
            f"{program!r} in the image {image} can not be run by user {plan.user}"
            f"{f', who can not reach {detail}' if detail else ''}.",
        ),
        "prompt-lost": (EngineBusyError, "The container has no room for the prompt."),
    }
    kind, message = kinds[report.refusal or ""]
    exit_code = {"no-command": 127, "not-executable": 126}.get(report.refusal or "", exit_code)  # as a shell has it
    step = None
    if report.refusal == "no-command":
        needs_python = program.rpartition("/")[2].startswith("python")
        python = "Install Python 3.11 or newer in the image, or name another image with --image."
        step = python if needs_python else for_missing
    elif report.refusal == "not-executable" and detail:
        step = "Install it where every user may go, such as /usr/local/bin."
    return kind(message, next_step=step, exit_code=exit_code, stderr=stderr)


STEP_TAIL: Final = 8192
"""Characters of what a setup or a check has said that an error holds: its end."""


def step_failed(report: Report, plan: Plan, stderr: str) -> ContainerRunnerError | None:
    """What went wrong before or after an agent that has done its work; None if nothing did."""
    code, tail = report.step_code, stderr[-STEP_TAIL:]
    if report.step == "setup":
        return SetupFailedError(f"The setup failed with code {code}.", exit_code=code, stderr=tail)
    if report.step == "check" and code:
        return CheckFailedError(f"The check failed with code {code}.", exit_code=code, stderr=tail)
    if plan.check and report.step is None:
        return CheckFailedError("The check was not run: the agent was told to end.", exit_code=report.ended)
    return None
