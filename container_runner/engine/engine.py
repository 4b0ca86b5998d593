"""docker or podman: which one it is, and its answers as values."""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol, Self

import anyio
import anyio.lowlevel
import attrs
import orjson

from container_runner.box import argv
from container_runner.box.argv import DOCKER, PODMAN, PODMAN_ROOTLESS, Dialect
from container_runner.box.environment import ENGINE_VARIABLE, client_environment
from container_runner.box.plan import Plan
from container_runner.engine.endpoint import docker_endpoint, podman_endpoint
from container_runner.engine.failures import classify, spawn_error
from container_runner.errors import ContainerGoneError, EngineError, EngineNotFoundError
from container_runner.stream import command as commands
from container_runner.stream.beat import BeatingProcess
from container_runner.stream.command import Completed
from container_runner.stream.pipe import Pipe, open_pipe
from container_runner.stream.process import EXIT_GRACE, TERM_GRACE, Process

CONTROL_TIMEOUT: Final = 30.0
"""Seconds that a control command may take. A stopped daemon would let it hang for ever."""

RUN_TIMEOUT: Final = 120.0
"""Seconds that `run` may take when it need not pull."""

PULL_TIMEOUT: Final = 1800.0
"""Seconds that `run` may take when it may pull the image first."""

CONTROL_PATIENCE: Final = 2.0
"""Seconds that a control command may still take when its caller is cancelled, and as many again after TERM."""

_DOCKER_VERSION = re.compile(r"Docker version \S+, build ")
"""What docker's own client says. podman says its name, whatever that is: "docker version 4.3.1" of a copy of it."""

_ID = re.compile(rb"[0-9a-f]{64}")


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

    image: str = ""
    """The id of its image, in hexadecimal digits."""

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
            image=str(raw.get("Image", "")).removeprefix("sha256:"),
        )


class Line(Protocol):
    """What carries the socket of an engine elsewhere to this machine: a `Tunnel`."""

    @property
    def is_open(self) -> bool:
        """Whether it does."""


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

    endpoint: str = ""
    """The address that the client speaks to, for people; "" for the default, this machine's own."""

    sees_files: bool = True
    """Whether it sees this machine's files, as far as is known: False once a run has proved that it does not."""

    graph_root: str = ""
    """Where podman keeps its containers on this machine; "" for docker, for one elsewhere, or if it was not asked."""

    tunnel: Line | None = attrs.field(default=None, eq=False, repr=False)
    """What carries its socket here: it is open as long as anybody holds this engine."""

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
        endpoint = podman_endpoint(environ) if podman else docker_endpoint(environ)
        return cls(binary=binary, dialect=dialect, environ=client_environment(environ), endpoint=endpoint)

    @classmethod
    async def probe(cls, wanted: str, environ: Mapping[str, str]) -> Self:
        """The engine that *wanted* means, asked itself: `docker` may be podman under that name.

        Raises:
            EngineNotFoundError: there is no such program.
            EngineError: it does not answer as an engine does.
        """
        guess = cls.guess(wanted, environ)
        if guess.dialect.name == "docker":
            try:
                version = await guess.ask("--version")
            except EngineNotFoundError:
                if wanted != "auto" or environ.get(ENGINE_VARIABLE, "") not in ("", "auto"):
                    raise
                raise EngineNotFoundError("There is neither docker nor podman on this machine.") from None
            if not _version(version):
                message = f"{guess.binary} does not answer as docker or podman do."
                raise EngineNotFoundError(message, stderr=version[:200])
            if _DOCKER_VERSION.match(version):
                return attrs.evolve(guess, version=_version(version))
        words = "{{.Host.ServiceIsRemote}} {{.Host.Security.Rootless}} {{.Version.Version}} {{.Store.GraphRoot}}"
        try:
            answer = await guess.ask_podman(words)
        except EngineError as error:
            if "evaluate field Host" not in error.stderr:
                raise
            # It is docker's client after all, whatever its name or the script around it made one think.
            version = await guess.ask("--version")
            return attrs.evolve(guess, dialect=DOCKER, version=_version(version), endpoint=docker_endpoint(environ))
        remote, rootless, version, graph_root = [*answer.split(" ", 3), "", "", ""][:4]
        dialect = PODMAN_ROOTLESS if rootless == "true" else PODMAN
        endpoint = podman_endpoint(environ)
        if remote != "false":
            graph_root = ""  # another machine's: the same path here holds containers that it knows nothing of
            endpoint = endpoint or "podman's default connection"
        return attrs.evolve(guess, dialect=dialect, version=_version(version), graph_root=graph_root, endpoint=endpoint)

    def made(self, plan: Plan) -> bool:
        """Whether *plan* is one for this very engine."""
        return (plan.run[0], plan.dialect, plan.endpoint) == (self.binary, self.dialect, self.endpoint)

    async def run(self, command: Sequence[str], *, timeout: float = CONTROL_TIMEOUT, check: bool = True) -> Completed:
        """Run one of argv.py's commands to its end.

        Raises:
            EngineNotFoundError: the program is not there.
            EngineTimeoutError: it took too long.
            EngineError: it failed, and *check* is set; a more special class where it can be told.
        """
        async with _limiter(_control):
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

    async def start(
        self,
        command: Sequence[str],
        stdin: bytes = b"",
        *,
        gate: bytes,
        end: bytes | None = None,
        line_limit: int | None = None,
    ) -> Process:
        """Start a `run` or `exec` command that stays attached: its stdin is held open, and is what keeps it alive.

        Raises:
            ConfigError: its arguments are too long.
            EngineError: the program can not be started.
        """
        try:
            kind = Process if self.sees_files else BeatingProcess
            return await kind.start(
                command,
                env=self.environ,
                cwd=self._run_place if command[1] == "run" else None,
                stdin=stdin,
                hold_stdin=True,
                gate=gate,
                end=end,
                line_limit=line_limit,
            )
        except OSError as error:
            raise spawn_error(command, error) from None

    @asynccontextmanager
    async def pipe(
        self,
        command: Sequence[str],
        stdin: bytes | AsyncIterable[bytes] | None = b"",
        *,
        patience: float | None = None,
    ) -> AsyncIterator[Pipe]:
        """Start a command that bytes run through, see `open_pipe`. Who leaves the block before its end, ends it.

        Raises:
            ConfigError: its arguments are too long.
            EngineError: the program can not be started.
        """
        is_run = command[1] == "run"
        grace = TERM_GRACE if is_run else EXIT_GRACE  # a `run` that is killed at once leaks, and an exec hears no TERM
        cwd = self._run_place if is_run else None
        async with AsyncExitStack() as stack:
            opened = open_pipe(command, env=self.environ, cwd=cwd, stdin=stdin, grace=grace, patience=patience)
            try:
                pipe = await stack.enter_async_context(opened)
            except OSError as error:
                raise spawn_error(command, error) from None
            yield pipe

    async def ran_out_of_memory(self, name: str, *, since: float) -> bool:
        """Whether the kernel killed something in a container for its memory, though it has been removed since.

        podman's events do not tell, so there it is False.

        Args:
            since: when the container was started, in seconds since the epoch.
        """
        if self.dialect.name != "docker":
            return False
        command = argv.events_argv(self.binary, name=name, event="oom", since=since, until=time.time())
        return bool((await self.run(command)).stdout.strip())

    async def architectures(self, image: str) -> tuple[str, str]:
        """Which CPU an image is for, and which the engine's machine has, as "amd64".

        Raises:
            EngineError: it does not tell.
        """
        theirs = await self.ask("image", "inspect", "--format={{.Architecture}}", "--", image)
        if self.dialect.name == "docker":
            return theirs, await self.ask("version", "--format={{.Server.Arch}}")
        return theirs, await self.ask_podman("{{.Host.Arch}}")

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
            return await commands.run(command, env=self.environ, cwd=cwd, timeout=timeout, patience=patience)
        except OSError as error:
            raise spawn_error(command, error) from None

    async def ask_podman(self, template: str) -> str:
        """What podman's `info` says to a template.

        It looks up the packages of its helpers whatever it is asked for, and with dpkg that takes four fifths of it. No
        one reads them here.
        """
        quick = attrs.evolve(self, environ={**self.environ, "DPKG_ADMINDIR": "/nonexistent"})
        return await quick.ask("info", f"--format={template}")

    async def ask(self, *words: str) -> str:
        """What the program prints for some words, such as "--version"."""
        return (await self.run([self.binary, *words])).text.strip()


_Limiter = anyio.lowlevel.RunVar[anyio.CapacityLimiter]
_control: _Limiter = _Limiter("container_runner control commands")
"""How many control commands may run at once in an event loop: twice the processors."""
_starts: _Limiter = _Limiter("container_runner starts")


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


def _choose(environ: Mapping[str, str]) -> str:
    """docker if it is there with a daemon to speak to; else podman; else docker, for the error that follows."""
    if (named := environ.get(ENGINE_VARIABLE, "")) not in ("", "auto"):
        return named
    path = environ.get("PATH")
    docker, podman = shutil.which("docker", path=path), shutil.which("podman", path=path)
    if docker is None or podman is None:
        return "podman" if docker is None and podman is not None else "docker"
    if environ.get("DOCKER_HOST") or environ.get("DOCKER_CONTEXT") or _looks_like_podman(docker):
        return "docker"
    sockets = ("/var/run/docker.sock", os.path.expanduser("~/.docker/run/docker.sock"))  # noqa: PTH111  never raises
    return "docker" if any(Path(socket).exists() for socket in sockets) else "podman"


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
    """An engine's time, to the microsecond."""
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        return dt.datetime.fromtimestamp(0, dt.UTC)
