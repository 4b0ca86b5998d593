"""A look from inside: a small script runs in the box, where the agent would, and what it says as checks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final

import attrs

from container_runner.agents import AgentRuntime, Command, CommandLineRuntime
from container_runner.box import passwd, script
from container_runner.box.mounts import EMPTY, sessions_folder
from container_runner.box.user import User
from container_runner.config import paths
from container_runner.config.container import ContainerConfig
from container_runner.doctor import advice
from container_runner.doctor.checks import Check, is_rootless_docker, passed
from container_runner.engine.engine import Engine
from container_runner.options import ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import ErrorMessage, OutputLine
from container_runner.workspace.changes import Changes

PROBE_TIMEOUT: Final = 60.0
"""Seconds that the script in the box may take, the agent's `--version` included."""

PROBE: Final = f"""\
read -r host </proc/sys/kernel/hostname
say() {{ printf '%s\\t%s\\n' "$1" "$2"; }}
try() {{
  file=$2/.container-runner-doctor-$host
  if (: >"$file") 2>/dev/null && rm -f "$file" 2>/dev/null; then say "$1" yes; else say "$1" no; fi
}}
get() {{ for file in $2; do [ ! -r "$file" ] || {{ read -r value <"$file"; say "$1" "$value"; return; }}; done; }}
while read -r key value rest; do
  [ "$key" != Uid: ] || uid=$value
  case $key in Uid: | CapBnd: | NoNewPrivs: | Seccomp:) say "${{key%:}}" "$value" ;; esac
done </proc/self/status
name=
while IFS=: read -r user mark number rest; do [ "$number" != "$uid" ] || name=$user; done </etc/passwd 2>/dev/null
[ -n "$name" ] || say nameless yes
if true </proc/1/environ; then say sealed no; else say sealed yes; fi 2>/dev/null
try root /
try tmp /tmp
try home "$HOME"
try workspace .
try sessions {paths.SESSIONS}
cgroup=/sys/fs/cgroup
get memory "$cgroup/memory.max $cgroup/memory/memory.limit_in_bytes"
get pids "$cgroup/pids.max $cgroup/pids/pids.max"
get shares $cgroup/cpu/cpu.shares
get weight $cgroup/cpu.weight
while IFS=' :' read -r name rest; do
  case $rest in *'|'* | '') ;; *) say network "$name" ;; esac
done </proc/net/dev
program=$(command -v "$1") && say agent "$program"
if [ "$2" = version ] && [ -n "$program" ]; then
  version=$("$1" --version 2>&1 </dev/null); say code $?; say version "$version"
fi
exit 0
"""
"""What stands where the agent would: `sh -c PROBE sh PROGRAM MODE`. It prints lines of a name, a tab and a value."""


ELSEWHERE = "elsewhere"
"""The name under which we add that the engine does not see this machine's files."""


class _Probe(CommandLineRuntime):
    """A runtime that is given all that another one's agent would be, and runs `PROBE` instead of it."""

    def __init__(self, runtime: CommandLineRuntime) -> None:
        self._runtime = runtime

    def with_words(self, options: ExecuteOptions, words: str) -> ExecuteOptions:
        return self._runtime.with_words(options, words)

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        command = self._runtime.command(options, contained=contained)
        # Only of the agents that we know do we know that --version does nothing else.
        mode = "version" if isinstance(self._runtime, AgentRuntime) else "-"
        return attrs.evolve(command, argv=("sh", "-c", PROBE, "sh", command.argv[0], mode), stdin=b"")


async def look_inside(
    runner: ContainerRunner, options: ExecuteOptions
) -> tuple[Mapping[str, tuple[str, ...]], ErrorMessage | None]:
    """Run `PROBE` just as the agent would run.

    Returns:
        What it said, as the values by their names, and the failure if the run failed.
    """
    # A kept container of the same agent may hold the ports; and a new one must not take its place.
    config = attrs.evolve(runner.config, ephemeral=True, ports=())
    options = attrs.evolve(options, prompt="doctor", timeout=PROBE_TIMEOUT, idle_timeout=PROBE_TIMEOUT)
    before = _folders(runner, options)
    said: dict[str, tuple[str, ...]] = {}
    failure: ErrorMessage | None = None
    probe = ContainerRunner(_Probe(runner.runtime), config, runner.state_dir, records=False)
    came: list[Changes | None] = []
    try:
        async with aclosing(probe.execute(options, on_end=lambda _, changes: came.append(changes))) as messages:
            async for message in messages:
                if isinstance(message, OutputLine):
                    name, _, value = message.text.partition("\t")
                    said[name] = (*said.get(name, ()), value)
                elif isinstance(message, ErrorMessage):
                    failure = message
        for changes in filter(None, came):
            await changes.discard()
        if failure is None and probe.plan(options).mounted.sent:
            said[ELSEWHERE] = ("yes",)
    finally:
        state = runner.state_dir.resolve()
        if state not in before:  # nobody else can need what it knows of an image
            shutil.rmtree(state / passwd.FOLDER, ignore_errors=True)
        for folder in sorted(_folders(runner, options) - before, reverse=True):
            with suppress(OSError):  # something else is in it by now
                folder.rmdir()
    return said, failure


def _folders(runner: ContainerRunner, options: ExecuteOptions) -> set[Path]:
    """The folders that a run may make in the state folder, as far as they are there."""
    state = runner.state_dir.resolve()
    sessions = sessions_folder(state, options.agent.name)
    above = {folder for folder in (state, state / EMPTY, state / "locks", sessions.parent) if folder.exists()}
    return above | {Path(folder) for folder, _, _ in os.walk(sessions)}


def check_inside(
    runner: ContainerRunner,
    options: ExecuteOptions,
    engine: Engine,
    info: Mapping[str, Any],
    said: Mapping[str, tuple[str, ...]],
) -> Iterator[Check]:
    """What `PROBE` said, as checks."""
    config, program = runner.config, runner.runtime.command(options, contained=True).argv[0]

    def one(name: str) -> str:
        return said.get(name, ("",))[0]

    yield _box(config, one)
    yield passed("tools", f"sh, {', '.join(script.TOOLS)}")
    runtime = runner.runtime
    yield _agent(config, program, one, runtime.kind if isinstance(runtime, AgentRuntime) else "claude")
    agent = options.agent
    folder = None if agent.workspace is None else Path(agent.workspace).expanduser().resolve()
    user = User.of(config, folder)
    if one(ELSEWHERE):
        found = "a copy, whose work comes back to be applied: the engine does not see this machine's files"
        yield passed("workspace", found if folder is not None else "a scratch folder")
        yield passed("sessions", "sent there and fetched from there")
        yield _network(runner, engine, said.get("network", ()))
        return
    if config.workspace_mode == "ro":
        yield passed("workspace", "read-only, as configured")
    else:
        yield _writable("workspace", one("workspace"), user, folder, engine, info)
    folder = sessions_folder(runner.state_dir.resolve(), agent.name)
    yield _writable("sessions", one("sessions"), user, folder, engine, info)
    yield _network(runner, engine, said.get("network", ()))


def _box(config: ContainerConfig, one: Callable[[str], str]) -> Check:
    open_ = [
        *(["it has capabilities"] if one("CapBnd").strip("0") else []),
        *(["it may gain privileges"] if one("NoNewPrivs") != "1" else []),
        *(["it may make any system call"] if one("Seccomp") != "2" else []),
        *(["it can write the image's files"] if config.read_only and one("root") == "yes" else []),
    ]
    if one("sealed") == "no":
        # The kernel lets a process read what runs a file that it may not read.
        found = "the agent can read PID 1, and so hold its lease open: it could outlive us until its time limit"
        fix = advice.as_root("sysctl fs.suid_dumpable=0")
        return Check(name="box", status="warn", found=found, fix=f"{fix}    # or look for capabilities in extra_args")
    if open_:
        fix = "container-runner argv --json …    # and look for what undoes the box, such as extra_args"
        return Check(name="box", status="warn", found=f"the box is not closed: {'; '.join(open_)}", fix=fix)
    for name, place in (("tmp", "/tmp"), ("home", "HOME")):  # noqa: S108  a path in the container
        if one(name) != "yes":
            found = f"the agent can not write its {place}"
            return Check(name="box", status="fail", found=found, fix=advice.other_image(config.engine))
    if one("nameless"):
        found = f"uid {one('Uid')} has no name in the image, and could not be given one, so ssh and whoami fail there"
        fix = "container-runner image build    # its images have names for the usual ones"
        return Check(name="box", status="warn", found=found, fix=fix)
    return passed("box", f"uid {one('Uid')}, no capabilities, no new privileges, system calls filtered")


def _agent(config: ContainerConfig, program: str, one: Callable[[str], str], kind: str) -> Check:
    if not one("agent"):
        found = f"there is no {program!r} in the image {config.image}"
        return Check(name="agent", status="fail", found=found, fix=advice.other_image(config.engine, kind))
    if one("code") not in ("", "0"):
        found = f"{one('agent')} --version fails with code {one('code')}: {one('version')}"
        return Check(name="agent", status="fail", found=found, fix=advice.other_image(config.engine, kind))
    version = f", {one('version')}" if one("version") else ""
    return passed("agent", f"{one('agent')}{version}")


def _writable(
    name: str, answer: str, user: User, folder: Path | None, engine: Engine, info: Mapping[str, Any]
) -> Check:
    where = folder or "a scratch folder"
    if answer == "yes":
        return passed(name, f"{where}, writable by the agent's user {user}")
    fix = "container-runner run --user=root …" if is_rootless_docker(info) else None
    if fix is None and folder is not None:
        fix = advice.give(user, folder, engine)
    return Check(name=name, status="fail", found=f"the agent's user {user} can not write in {where}", fix=fix)


def _network(runner: ContainerRunner, engine: Engine, interfaces: Sequence[str]) -> Check:
    wanted, others = runner.config.network, [name for name in interfaces if name != "lo"]
    if wanted == "none":
        if isinstance(runner.runtime, AgentRuntime):
            found = "none, as configured: an agent that asks a model on the internet will fail"
            return Check(name="network", status="warn", found=found, fix="container-runner run --network=bridge …")
        return passed("network", "none, as configured")
    if not others and wanted != "host":
        found = f"{wanted}, but the box has no network interface"
        return Check(name="network", status="fail", found=found, fix=f"{runner.config.engine} network inspect {wanted}")
    closed = sorted(port.host_port for port in runner.config.ports if port.host_port < _first_port(engine))
    if closed:  # the box had no ports, for a kept container may hold them
        found = f"a rootless engine may not open the port {closed[0]}; those from {_first_port(engine)} on it may"
        line = advice.as_root(f"sysctl net.ipv4.ip_unprivileged_port_start={closed[0]}")
        fix = f"{line}    # or another --port, as 8080:80"
        return Check(name="network", status="fail", found=found, fix=fix)
    return passed("network", f"{wanted} ({', '.join(others) or 'lo'})")


def _first_port(engine: Engine) -> int:
    """The first port of the host that the engine may open."""
    if not engine.dialect.keep_id:
        return 0
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text("ascii"))
    except (OSError, ValueError):
        return 0
