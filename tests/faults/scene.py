"""What every fault test stands on: runs that can be told from all others, and a count of what they left."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import attrs

from container_runner import Agent, ClaudeRuntime, ContainerConfig, ContainerRunner, ErrorMessage, ExecuteOptions
from container_runner.agents import CommandLineRuntime
from container_runner.config.paths import MARK
from container_runner.stream.messages import Message
from tests.integration.engines import RealEngine, mounts_below, processes_of
from tests.integration.images import Unavailable

PATIENCE = 15.0
"""Seconds after which what is still there counts as left. The promise is 5; a busy machine gets more."""

VARIABLE = "FAULT_SCENE"
"""Everything in a scene's containers has it in its environment, PID 1 included."""


@attrs.frozen(kw_only=True)
class Row:
    """What one fault came to."""

    fault: str
    engine: str
    backend: str

    saw: str
    """What the user was told: an error's kind, an exception, an exit code."""

    left: int
    """How many processes, containers, files, descriptors, tasks and threads were left."""

    seconds: float
    """The time from the fault until nothing was left; of several tries the longest."""

    tries: int = 1


@attrs.define
class Table:
    """The rows of a session; tries of the same fault share one."""

    rows: dict[tuple[str, str, str], Row] = attrs.field(factory=dict)

    def add(self, row: Row) -> None:
        key = row.fault, row.engine, row.backend
        old = self.rows.get(key)
        if old is not None:
            saw = " / ".join(dict.fromkeys([*old.saw.split(" / "), *row.saw.split(" / ")]))
            row = attrs.evolve(
                row,
                saw=saw,
                left=old.left + row.left,
                seconds=max(old.seconds, row.seconds),
                tries=old.tries + row.tries,
            )
        self.rows[key] = row

    def to_markdown(self) -> str:
        # With `pytest -n` several processes add rows, and whose come first is chance; one engine's are in their order.
        rows = sorted(self.rows.values(), key=lambda row: row.engine)
        faults = list(dict.fromkeys(row.fault for row in rows))
        rows.sort(key=lambda row: (faults.index(row.fault), row.engine, row.backend))
        lines = ["| fault | engine | event loop | tries | what the user saw | left | seconds until clean |"]
        lines.append("|---|---|---|--:|---|--:|--:|")
        lines += [
            f"| {row.fault} | {row.engine} | {row.backend} | {row.tries} | {row.saw} | {row.left} | {row.seconds:.1f} |"
            for row in rows
        ]
        return "\n".join(lines)


TABLE = Table()
"""What the fault suite prints at its end."""


@attrs.frozen(kw_only=True)
class Scene:
    """One engine, one agent's name that nothing else has, and folders that go at the end."""

    engine: RealEngine
    table: Table
    folder: Path

    token: str = attrs.field(factory=lambda: f"fault-{secrets.token_hex(4)}")
    """The agent's name. It is in the name of every container, and in every process's environment."""

    _before: set[int] = attrs.field(factory=set, repr=False)
    _resources: dict[str, int] = attrs.field(factory=lambda: resources(), repr=False)
    _zombies: frozenset[int] = attrs.field(factory=lambda: frozenset(_zombie_children()), repr=False)
    _victims: list[Victim] = attrs.field(factory=list, repr=False)

    @classmethod
    @contextlib.contextmanager
    def on(cls, engine: RealEngine, table: Table) -> Iterator[Scene]:
        """A scene on an engine; whatever a failing test has left is cleared away behind it."""
        folder = Path(tempfile.mkdtemp(prefix="cr-fault-", dir="/tmp"))
        folder.chmod(0o755)
        for name in ("project", "tmp"):
            (folder / name).mkdir()
            os.chown(folder / name, *engine.owner)
        scene = cls(engine=engine, table=table, folder=folder, before=set(_engine_processes(engine)))
        try:
            yield scene
        finally:
            for victim in scene._victims:
                victim.kill(tree=True)
            for container in scene.containers():
                engine.remove(container)
            for pid in scene.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def loop(self) -> str:
        """The event loop of what is not run on both: one on Docker, the other on Podman."""
        return "asyncio" if self.engine.is_docker else "trio"

    @property
    def workspace(self) -> Path:
        return self.folder / "project"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def fields(self, **more: Any) -> dict[str, Any]:
        """The fields of a configuration."""
        return {
            "engine": self.engine.binary,
            "image": self.engine.images.tiny,
            "network": "none",
            "credentials": "none",
            "extra_args": [f"--env={VARIABLE}={self.token}"],
            **more,
        }

    def runner(self, runtime: CommandLineRuntime | None = None, **more: Any) -> ContainerRunner:
        """A runner whose configuration has these fields too."""
        return ContainerRunner(runtime or ClaudeRuntime(), ContainerConfig(**self.fields(**more)), self.state)

    def options(self, prompt: str, **more: Any) -> ExecuteOptions:
        return ExecuteOptions(prompt=prompt, agent=Agent(name=self.token, workspace=self.workspace), **more)

    def victim(self, prompt: str, *, backend: str = "", engine: str = "", **more: Any) -> Victim:
        """A process that runs one agent, for being killed. See victim.py for what else can be said."""
        fields = self.fields(**more.pop("config", {}))
        if engine:
            fields["engine"] = engine
        order = {
            "config": fields,
            "agent": self.token,
            "workspace": str(self.workspace),
            "state": str(self.state),
            "prompt": prompt,
            "backend": backend or self.loop,
            **more,
        }
        self._victims.append(Victim(json.dumps(order), folder=self.folder))
        return self._victims[-1]

    def containers(self) -> list[str]:
        """The full ids of this scene's containers, running or not."""
        mine = f"--filter=label=container-runner.agent={self.token}"
        return self.engine.run("ps", "--all", "--quiet", "--no-trunc", mine).stdout.split()

    def processes(self) -> dict[int, str]:
        """All processes of this scene: in containers and on the host."""
        found = {pid: line for pid, line, about in all_processes() if self.token.encode() in about}
        found |= {pid: line for pid, line in _engine_processes(self.engine).items() if pid not in self._before}
        for pid in list(found):
            found |= {child: f"child of {pid}, {_comm(child)}" for child in descendants(pid) if child not in found}
        return found

    def agents(self) -> dict[int, str]:
        """The processes of runs: agents, all that they started, and our scripts and clients around them."""
        found = {}
        for pid, line, about in all_processes():
            if self.token.encode() in about and (f"\0{MARK}=".encode() in about or "check_mounts" in line):
                found[pid] = line
        # In an ephemeral container all is below our script, and carries no mark.
        for pid in list(found):
            found |= {child: f"{_comm(child)}: {_command(child)!r}" for child in descendants(pid) if child not in found}
        return found

    def _state(self, container: str) -> str:
        return self.engine.run("inspect", "--format={{json .State}}", container, check=False).stdout.strip()

    def clients(self, verb: str) -> list[int]:
        """The engine's clients that this very process has started for a verb."""
        children = [(pid, _command(pid)) for pid in _children(os.getpid())]
        return [pid for pid, line in children if verb.encode() in line.split(b"\0") and self.token.encode() in line]

    def spare(self) -> None:
        """Count nothing of the engine's that is there now: a test has started it."""
        self._before.update(_engine_processes(self.engine))

    def restart_machine(self) -> None:
        """Kill the engine and all that it runs, throw away what a machine has in memory, and start the engine again.

        What had not been written to the disk yet is still there: only a machine of its own could lose that.

        Raises:
            Unavailable: the engine is the machine's own.
        """
        if not (memory := self.engine.memory):
            msg = f"{self.engine.name} is the machine's own"
            raise Unavailable(msg)
        top = memory[0].parent
        while pids := [found for found, line in processes_of(top).items() if f"{top}/" in line]:
            for pid in {*pids, *(child for parent in pids for child in descendants(parent))}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        for mount in mounts_below(top):
            subprocess.run(["umount", "--lazy", mount], check=True)
        for folder in memory:
            shutil.rmtree(folder)
        if self.engine.daemon is not None:
            self.engine.restart_daemon()

    def left(self, *, keep: Collection[str] = ()) -> list[str]:
        """What is there of this scene. Of the containers *keep*, only what runs of agents left in them counts."""
        processes = self._beside(keep) if keep else self.processes()
        left = [f"process {pid}: {line[:200]}" for pid, line in processes.items()]
        if left:
            return left  # asking the engine is slow
        containers = set(self.containers())
        left += [f"container {name}: {self._state(name)}" for name in containers - set(keep)]
        left += [f"missing: container {name}" for name in set(keep) - containers]
        left += [f"file {path}" for path in (self.folder / "tmp").iterdir()]
        if not keep:
            left += [f"lock {path.name}" for path in self.state.glob("locks/container.*")]
        left += [f"zombie child {pid}" for pid in _zombie_children() if pid not in self._zombies]
        for name, now in resources().items():
            if now > self._resources[name]:
                left.append(f"{now - self._resources[name]} {name} more than before")
        return left

    def _beside(self, keep: Collection[str]) -> dict[int, str]:
        """The processes of runs, and of the engine's those that are not the kept containers' own."""
        engines = {
            pid: line
            for pid, line in _engine_processes(self.engine).items()
            if pid not in self._before and ("--exec-attach" in line or not any(name in line for name in keep))
        }
        return self.agents() | engines

    def settle(
        self,
        fault: str,
        saw: str,
        *,
        since: float,
        backend: str = "",
        keep: Collection[str] = (),
        also: Callable[[], list[str]] = list,
        tries: int = 1,
        patience: float = PATIENCE,
    ) -> float:
        """Wait until nothing is left, add the row, and return the seconds since the fault. Fails if there is.

        The patience begins now: until a busy machine has come here, it may have taken much of it.
        """
        end = time.monotonic() + patience
        pause = 0.05  # a look at all processes takes a quarter of that
        while True:
            left = self.left(keep=keep) + also()
            seconds = time.monotonic() - since
            if not left or time.monotonic() > end:
                break
            time.sleep(pause)
            pause = min(1.2 * pause, 0.2)
        row = Row(
            fault=fault,
            engine=self.engine.name,
            backend=backend or self.loop,
            saw=saw,
            left=len(left),
            seconds=max(0.0, seconds),
            tries=tries,
        )
        self.table.add(row)
        assert not left, f"{fault}: after {seconds:.1f} s there is still\n" + "\n".join(left)
        return seconds


class Victim:
    """A Python process that runs an agent and prints a line for each message."""

    def __init__(self, order: str, *, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.victim", order],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(folder / "tmp")},
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """The next line that it prints, "" at the end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def wait_for(self, word: str) -> str:
        """Read until a line begins with the word; fails if it does not come."""
        seen = []
        while line := self.line():
            seen.append(line)
            if line.startswith(word):
                return line
        assert self.process.stderr is not None
        msg = f"no {word!r} in {seen}\n{self.process.stderr.read()[-3000:]}"
        raise AssertionError(msg)

    def wait_for_client(self, verb: str, *, seconds: float = 20) -> None:
        """Wait until the engine's client for a verb has been started."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            # The verb follows the engine's own flags, such as podman's --root.
            if any(verb.encode() in command.split(b"\0")[1:9] for command in map(_command, descendants(self.pid))):
                return
            time.sleep(0.002)
        self.process.kill()
        msg = f"no client came for {verb!r}; the process said {self.process.communicate()}"
        raise AssertionError(msg)

    def kill(self, *, tree: bool) -> float:
        """SIGKILL it, alone or with all its descendants, and tell when that was."""
        if self.process.returncode is not None:
            for pipe in (self.process.stdout, self.process.stderr):
                assert pipe is not None
                pipe.close()
            return time.monotonic()
        pids = descendants(self.pid) if tree else []
        for pid in (self.pid, *pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        now = time.monotonic()
        self.process.communicate()
        return now


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    found = []
    for child in _children(pid):
        found += [child, *descendants(child)]
    return found


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in _read(thread / "children").split()]
    return []


def _zombie_children() -> list[int]:
    return [pid for pid in _children(os.getpid()) if b"\nState:\tZ" in _read(Path(f"/proc/{pid}/status"))]


def _command(pid: int) -> bytes:
    return _read(Path(f"/proc/{pid}/cmdline"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


def all_processes() -> Iterator[tuple[int, str, bytes]]:
    """Every process but this one: pid, command line, and command line with environment."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            command = _read(entry / "cmdline")
            yield (
                int(entry.name),
                command.replace(b"\0", b" ").decode(errors="replace"),
                command + b"\0" + _read(entry / "environ"),
            )


def _engine_processes(engine: RealEngine) -> dict[int, str]:
    """conmon, runc, shims and clients of an engine that is only for tests, and every runtime without a parent."""
    found = {
        pid: line
        for pid, line in processes_of(Path(engine.binary).parent).items()
        if _comm(pid) not in ("dockerd", "containerd")
    }
    for pid in _children(1):
        if _comm(pid).startswith(("runc", "crun")):
            found[pid] = _comm(pid)
    return found


def _comm(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/comm")).decode(errors="replace").strip()


def last(messages: list[Message]) -> str:
    """What the user saw at the end: an error's kind with the rung that stopped the agent, or a message's type."""
    if not messages:
        return "nothing"
    message = messages[-1]
    if isinstance(message, ErrorMessage):
        return message.kind + (f" ({message.stop})" if message.stop else "")
    return str(message.type)


def resources() -> dict[str, int]:
    """What a leak in this process would make grow."""
    # trio keeps a thread that has nothing to do for ten seconds.
    threads = [thread for thread in threading.enumerate() if not thread.name.startswith("Trio")]
    return {"descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()), "threads": len(threads)}
