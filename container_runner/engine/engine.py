"""docker or podman: which one it is, its answers as values, its failures as errors."""

from __future__ import annotations

import datetime as dt
import errno
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import anyio
import anyio.lowlevel
import attrs
import orjson

from container_runner.box import argv
from container_runner.box.argv import DOCKER, PODMAN, PODMAN_ROOTLESS, Dialect
from container_runner.box.environment import ENGINE_VARIABLE, client_environment
from container_runner.errors import (
    ConfigError,
    ContainerGoneError,
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
from container_runner.stream import process
from container_runner.stream.process import Completed

CONTROL_TIMEOUT: Final = 30.0
"""Seconds that a control command may take. A stopped daemon would let it hang for ever."""

RUN_TIMEOUT: Final = 120.0
"""Seconds that `run` may take when it need not pull."""

PULL_TIMEOUT: Final = 1800.0
"""Seconds that `run` may take when it may pull the image first."""

CONTROL_PATIENCE: Final = 2.0
"""Seconds that a control command may still take when its caller is cancelled, and as many again after TERM."""

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
"""What the engines really say (reliability 3 and 9), and what it means. The first match counts, and gives the name."""

_ID = re.compile(rb"[0-9a-f]{64}")


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


@attrs.frozen(kw_only=True)
class ContainerInfo:
    """What the engine knows of a container."""

    id: str
    name: str
    labels: Mapping[str, str]

    status: str
    """"created", "running", "paused", "exited", "dead" and the like."""

    oom_killed: bool
    exit_code: int
    created: dt.datetime

    @property
    def is_running(self) -> bool:
        return self.status == "running"

    @property
    def has_processes(self) -> bool:
        """Whether it was started and has not ended, though it may be paused or on its way up again."""
        return self.status in ("running", "paused", "restarting")

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """One entry of `inspect`'s JSON, of either engine."""
        state = raw.get("State") or {}
        return cls(
            id=str(raw["Id"]),
            name=str(raw["Name"]).removeprefix("/"),
            labels=dict((raw.get("Config") or {}).get("Labels") or {}),
            status=str(state.get("Status", "")),
            oom_killed=state.get("OOMKilled") is True,
            exit_code=int(state.get("ExitCode") or 0),
            created=_time(str(raw.get("Created", ""))),
        )


@attrs.frozen(kw_only=True)
class Engine:
    """A docker or podman command line, and what is special about it."""

    binary: str
    """The program, as a path or as a name to be found on PATH."""

    dialect: Dialect

    environ: Mapping[str, str] = attrs.field(repr=False)
    """The client's environment."""

    version: str = ""
    """The client's version, "" if it was not asked."""

    graph_root: str = ""
    """Where podman keeps its containers on this machine; "" for docker, for one elsewhere, or if it was not asked."""

    @classmethod
    def guess(cls, wanted: str, environ: Mapping[str, str]) -> Self:
        """The engine that *wanted* means, judged from files alone: no process is started.

        Args:
            wanted: "auto", "docker", "podman", or a program's name or path.

        Raises:
            EngineNotFoundError: there is no such program. (For "auto" docker is assumed, so that the commands can
                be shown on a machine without an engine.)
        """
        binary = _choose(environ) if wanted == "auto" else wanted
        path = shutil.which(binary, path=environ.get("PATH"))
        if path is None and wanted not in ("auto", "docker", "podman"):
            raise EngineNotFoundError(f"There is no program {wanted!r} on this machine.")
        podman = _looks_like_podman(path or binary)
        dialect = (PODMAN if os.geteuid() == 0 else PODMAN_ROOTLESS) if podman else DOCKER
        if os.sep in binary:
            binary = str(Path(binary).absolute())  # not all commands are called in the current folder
        return cls(binary=binary, dialect=dialect, environ=client_environment(environ))

    @classmethod
    async def probe(cls, wanted: str, environ: Mapping[str, str]) -> Self:
        """The engine that *wanted* means, asked itself: `docker` may be podman under that name.

        Raises:
            EngineNotFoundError: there is no such program.
            EngineError: it does not answer as an engine does.
        """
        guess = cls.guess(wanted, environ)
        version = ""
        if guess.dialect.name == "docker":
            try:
                version = await guess.ask("--version")
            except EngineNotFoundError:
                if wanted != "auto" or environ.get(ENGINE_VARIABLE):
                    raise
                raise EngineNotFoundError("There is neither docker nor podman on this machine.") from None
            if not _version(version):
                message = f"{guess.binary} does not answer as docker or podman do."
                raise EngineNotFoundError(message, stderr=version[:200])
            if "podman" not in version.lower():
                return attrs.evolve(guess, version=_version(version))
        words = "{{.Host.ServiceIsRemote}} {{.Host.Security.Rootless}} {{.Version.Version}} {{.Store.GraphRoot}}"
        said = (await guess.ask("info", f"--format={words}")).split(" ", 3)
        remote, rootless, version, graph_root = [*said, "", "", ""][:4]
        dialect = PODMAN_ROOTLESS if rootless == "true" else PODMAN
        if remote != "false":
            graph_root = ""  # another machine's: the same path here holds containers that it knows nothing of
        return attrs.evolve(guess, dialect=dialect, version=_version(version), graph_root=graph_root)

    async def run(
        self,
        command: Sequence[str],
        *,
        timeout: float = CONTROL_TIMEOUT,
        check: bool = True,
    ) -> Completed:
        """Run one of argv.py's commands to its end.

        Raises:
            EngineNotFoundError: the program is not there.
            EngineTimeoutError: it took too long.
            EngineError: it failed, and *check* is set; a more special class where it can be told.
        """
        async with control_limiter():
            done = await self._run(command, timeout, patience=CONTROL_PATIENCE)
        if check and done.returncode != 0:
            raise classify(done, command[1])
        return done

    async def create(self, command: Sequence[str], *, may_pull: bool) -> str:
        """Run a `run` command, and return the container's id. The caller limits how many run at once.

        Raises:
            EngineError: see `run`. A container may exist all the same, so remove it by its name.
        """
        done = await self._run(command, PULL_TIMEOUT if may_pull else RUN_TIMEOUT, cwd=self._run_place)
        last = done.stdout.strip().rsplit(b"\n", 1)[-1]
        # A `run` that was asked to terminate exits with 0 and no id.
        if done.returncode != 0 or not _ID.fullmatch(last):
            raise classify(done, "run")
        return last.decode()

    async def find(self, labels: Mapping[str, str]) -> list[str]:
        """The ids of all containers that carry every one of *labels*; the value "" stands for any."""
        return (await self.run(argv.list_argv(self.binary, labels))).text.split()

    async def inspect(self, names: Iterable[str]) -> list[ContainerInfo]:
        """What is known of the containers that exist; the others are left out."""
        wanted = list(names)
        if not wanted:
            return []
        done = await self.run(argv.inspect_argv(self.binary, wanted), check=False)
        if done.returncode != 0 and not isinstance(error := classify(done, "inspect"), ContainerGoneError):
            raise error
        try:
            # Where some are gone, the exit code is an error's and the JSON holds the others.
            return [ContainerInfo.parse(raw) for raw in orjson.loads(done.stdout or b"[]")]
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
            raise classify(done, "inspect") from None

    async def remove(self, name: str) -> None:
        """End and remove a container. One that is not there, or is being removed, is no error."""
        done = await self.run(argv.remove_argv(self.binary, self.dialect, name=name), check=False)
        if done.returncode != 0 and "already in progress" not in done.stderr:
            error = classify(done, "rm")
            if not isinstance(error, ContainerGoneError):
                raise error

    @property
    def _run_place(self) -> str | None:
        place = self.dialect.run_in
        return place if place is not None and Path(place).is_dir() else None

    async def _run(
        self, command: Sequence[str], timeout: float, *, cwd: str | None = None, patience: float | None = None
    ) -> Completed:
        try:
            return await process.run(command, env=self.environ, cwd=cwd, timeout=timeout, patience=patience)
        except OSError as error:
            raise spawn_error(command, error) from None

    async def ask(self, *words: str) -> str:
        """What the program prints for some words, such as "--version"."""
        return (await self.run([self.binary, *words])).text.strip()


_Limiter = anyio.lowlevel.RunVar[anyio.CapacityLimiter]
_control: _Limiter = _Limiter("container_runner control commands")
_starts: _Limiter = _Limiter("container_runner starts")


def control_limiter() -> anyio.CapacityLimiter:
    """How many control commands may run at once in this event loop: twice the processors."""
    return _limiter(_control)


def start_limiter() -> anyio.CapacityLimiter:
    """How many agents may be starting at once in this event loop: twice the processors.

    One place is held from a container's `run` to its agent's first sign of life. Were the two to queue apart, a new
    container could wait for its agent for longer than it does.
    """
    return _limiter(_starts)


def _limiter(variable: _Limiter) -> anyio.CapacityLimiter:
    try:
        return variable.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(2 * (os.cpu_count() or 2))
        variable.set(limiter)
        return limiter


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


def _choose(environ: Mapping[str, str]) -> str:
    """docker if it is there with a daemon to speak to; else podman; else docker, for the error that follows."""
    if environ.get(ENGINE_VARIABLE):
        return environ[ENGINE_VARIABLE]
    path = environ.get("PATH")
    docker, podman = shutil.which("docker", path=path), shutil.which("podman", path=path)
    if docker is None or podman is None:
        return "podman" if docker is None and podman is not None else "docker"
    if environ.get("DOCKER_HOST") or environ.get("DOCKER_CONTEXT") or _looks_like_podman(docker):
        return "docker"
    sockets = (Path("/var/run/docker.sock"), Path("~/.docker/run/docker.sock").expanduser())
    return "docker" if any(socket.exists() for socket in sockets) else "podman"


def _looks_like_podman(path: str) -> bool:
    """Whether a program is podman by its name, behind a link, or as the script that Linux distributions ship."""
    real = Path(path).resolve()
    if "podman" in real.name:
        return True
    try:
        with real.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return head.startswith(b"#!") and b"podman" in head


def _version(text: str) -> str:
    match = re.search(r"\d+\.\d+[^\s,]*", text)
    return match[0] if match else ""


def _time(text: str) -> dt.datetime:
    """An engine's time, with its nanoseconds cut to what Python holds."""
    text = re.sub(r"(\.\d{6})\d+", r"\1", text)
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        return dt.datetime.fromtimestamp(0, dt.UTC)


def _relevant(said: str) -> str:
    """What it said, without what it says every time and the id of a container that never ran, cut to its end."""
    noise = (
        "Emulate Docker CLI using podman",
        "falling back to the default CNI",
        "See 'docker run --help'",
        "Run 'docker",
    )
    lines = [line.rstrip("\r") for line in said.split("\n") if line.strip() and not any(n in line for n in noise)]
    return "\n".join(line for line in lines if not _ID.fullmatch(line.strip().encode()))[-4096:]
