"""Whether a run would work on this machine: each thing that it needs as a check, with the line to type if it fails.

Nothing is guessed that can be tried: the checks of the box come from a real run, with your very flags, user, mounts
and variables, in which a small script stands where the agent would.
"""

from __future__ import annotations

import grp
import os
import platform
import pwd
import re
import shlex
import shutil
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final, Literal

import attrs
import orjson

from container_runner.agents import ClaudeRuntime, Command, CommandLineRuntime, Credentials
from container_runner.box import argv, guest
from container_runner.box.environment import host_environment
from container_runner.box.mounts import sessions_folder
from container_runner.box.plan import Plan
from container_runner.box.user import User
from container_runner.config import paths
from container_runner.config.container import ContainerConfig
from container_runner.engine.engine import Engine
from container_runner.engine.failures import classify
from container_runner.engine.image import AGENTS
from container_runner.errors import (
    ConfigError,
    ContainerRunnerError,
    EngineError,
    EngineNotFoundError,
    EnginePermissionError,
    EngineTimeoutError,
    EngineUnreachableError,
    ImageNotFoundError,
)
from container_runner.options import ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import ErrorMessage, OutputLine

__all__ = ["NAMES", "Check", "Status", "examine"]

Status = Literal["ok", "warn", "fail", "skip"]

NAMES: Final = (
    "configuration",
    "credentials",
    "secrets",
    "engine",
    "daemon",
    "rootless",
    "versions",
    "image",
    "box",
    "tools",
    "agent",
    "workspace",
    "sessions",
    "network",
    "limits",
)
"""All checks, in the order in which they are made."""

PROBE_TIMEOUT: Final = 60.0
"""Seconds that the script in the box may take, the agent's `--version` included."""

DEFAULT_IMAGE: Final = "container-runner/claude"

SHARED: Final = ("/home", "/media", "/mnt", "/opt", "/srv")
"""Folders whose owner is not to be changed."""


@attrs.frozen(kw_only=True)
class Check:
    """One thing that a run needs, and how it stands with it."""

    name: str
    """One of `NAMES`."""

    status: Status
    """"ok"; "warn": a run works, and you should know this; "fail": a run would fail; "skip": not looked at."""

    found: str
    """What was seen, in a line or two. It may hold text of the engine's or the image's."""

    fix: str | None = None
    """A line to type, or None where there is nothing to do."""


Prepare = Callable[[], tuple[ContainerRunner, ExecuteOptions]]


async def examine(prepare: Prepare, *, engine: str = "auto") -> AsyncGenerator[Check, None]:
    """Make the checks, and yield one `Check` for each of `NAMES`. None of them fails if, and only if, a run works.

    It leaves nothing behind. Like the first run of a runner it removes containers whose owner is dead.

    Args:
        prepare: makes the runner and the options of the run in question; a `ConfigError` of it is a check that failed.
        engine: the engine to look at if *prepare* fails.
    """
    seen: set[str] = set()
    async with aclosing(_examine(prepare, engine)) as checks:
        async for check in checks:
            seen.add(check.name)
            yield check
    for name in NAMES:
        if name not in seen:
            yield Check(name=name, status="skip", found="not looked at, because of what failed above")


async def _examine(prepare: Prepare, wanted: str) -> AsyncGenerator[Check, None]:
    runner: ContainerRunner | None = None
    options: ExecuteOptions | None = None
    refused: ConfigError | None = None
    try:
        runner, options = prepare()
        wanted = runner.config.engine
        with suppress(EngineNotFoundError):  # the engine has a check of its own
            plan = runner.plan(options)
            yield _ok("configuration", f"agent {options.agent.name} in the image {runner.config.image}")
            yield check_credentials(runner.config, _command(runner, options).credentials, plan, runner.state_dir)
            yield check_secrets(runner.config, plan)
    except ConfigError as error:
        options, refused = None, error
        if _refusal(error) in ("configuration", "credentials"):
            yield _refused(error, runner, wanted, None)
            refused = None
    engine: Engine | None = None
    try:
        engine = await Engine.probe(wanted, host_environment())
        yield _engine(engine)
        info = await _ask(engine, argv.info_argv(engine.binary))
        versions = await _ask(engine, argv.version_argv(engine.binary))
    except ContainerRunnerError as error:
        # First, for the advice on what else was refused may need an engine.
        yield without_engine(error, wanted) if engine is None else without_daemon(error, engine)
        if refused is not None:
            yield _refused(refused, runner, wanted, engine)
        return
    yield check_daemon(engine, info)
    yield check_rootless(engine, info)
    yield check_versions(engine, info, versions)
    if refused is not None:
        yield _refused(refused, runner, wanted, engine)
    if runner is None:
        yield check_limits(engine, info, None, {})
        return
    image = await _image(engine, runner.config)
    if image.status == "fail" or options is None:
        yield image
        yield check_limits(engine, info, None, {})
        return
    inside, failure = await look_inside(runner, options)
    failed = None if failure is None else _failed(failure, engine, runner.config)
    if failed is None or failed.name != "image":
        yield image
    if failed is not None:
        yield failed
        yield check_limits(engine, info, None, {})
        return
    for check in check_inside(runner, options, engine, info, inside):
        yield check
    yield check_limits(engine, info, runner.config, inside)


def _ok(name: str, found: str) -> Check:
    return Check(name=name, status="ok", found=found)


# Before anything is started


def _refusal(error: ConfigError) -> str:
    """The name of the check that a refused value belongs to."""
    if error.field in ("image", "--image") and error.value is None:
        return "image"
    names = {"agent.workspace": "workspace", "credentials": "credentials", "state_dir": "sessions"}
    return names.get(error.field, "configuration")


def _refused(error: ConfigError, runner: ContainerRunner | None, wanted: str, engine: Engine | None) -> Check:
    name = _refusal(error)
    found, fix = error.message, error.next_step
    if name == "image":
        flag = _engine_flag(wanted)
        found = "no image is named, neither by --image nor in a configuration file"
        fix = f"container-runner image build{flag} && container-runner doctor --image={DEFAULT_IMAGE}{flag}"
    elif name == "workspace":
        folder = Path(str(error.value)).expanduser()
        if not folder.exists():
            found = f"there is no folder {error.value}"
            fix = f"mkdir -p {shlex.quote(str(error.value))}"
            if runner is not None and (user := User.of(runner.config, None)).uid not in (0, os.geteuid()):
                fix += f" && {_give(user, folder.absolute(), engine)}"
        elif runner is not None and " can write" in error.allowed:
            folder = folder.resolve()
            user = User.of(runner.config, folder)
            found = f"the agent's user {user} can not write in {folder}"
            fix = _give(user, folder, engine)
        else:
            found = f"{folder.resolve()} can not be the workspace"
            fix = f"container-runner doctor --workspace=…    # {error.allowed}"
    return Check(name=name, status="fail", found=found, fix=fix)


def _give(user: User, folder: Path, engine: Engine | None) -> str:
    """The line that lets *user* write in a folder."""
    if str(folder) in SHARED:
        return f"container-runner doctor --workspace=…    # a folder of the agent's own: {folder} is everybody's"
    quoted = shlex.quote(str(folder))
    if engine is not None and engine.dialect.keep_id and os.geteuid() not in (0, user.uid):
        return (
            "container-runner run …    # without --user: on rootless podman the agent is you, and nobody else of yours"
        )
    with suppress(OSError):
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return f"{_as_root(f'mount -o remount,rw {shlex.quote(_mount_point(folder))}')}    # or --workspace-mode=ro"
        if folder.stat().st_uid == user.uid:  # who may not write what is theirs is kept from it by its permissions
            command = f"chmod -R u+rwX {quoted}"
            return command if user.uid == os.geteuid() else _as_root(command)
    return _as_root(f"chown -R {user} {quoted}")


def _mount_point(folder: Path) -> str:
    """Where the file system of a folder begins; one that is mounted a second time only the kernel's list tells."""
    listed = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    mounts = {re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4]) for line in listed}
    return next(path for path in map(str, (folder, *folder.parents)) if path in mounts)


_ELSEWHERE: Final = re.compile(r"(ANTHROPIC|CLAUDE_CODE|AWS|GOOGLE|VERTEX|OPENAI|GEMINI)_\w+")
"""Variables by which an agent gets at a model in ways that are not ours to check."""


def check_credentials(config: ContainerConfig, credentials: Credentials, plan: Plan, state_dir: Path) -> Check:
    """Whether the agent is given something to log in with. No value is looked at."""
    name = "credentials"
    if not credentials.names:
        return _ok(name, "this command needs none that we know of")
    if config.credentials == "none":
        return _ok(name, "none are given, as configured")
    given = [
        variable
        for variable, value in plan.values.items()
        if value and (variable in credentials.names or _ELSEWHERE.fullmatch(variable))
    ]
    if given:
        return _ok(name, f"{' and '.join(given)} from the environment")
    if any(mount.target == credentials.target for mount in plan.mounts):
        return _ok(name, f"the login in {credentials.file}")
    if (sessions_folder(state_dir, plan.agent) / ".credentials.json").is_file():
        return _ok(name, "the agent has logged in itself, in an earlier run")
    found = f"neither {' nor '.join(credentials.names)} is set, and no login can be read in {credentials.file}"
    return Check(name=name, status="fail", found=found, fix=f"export {credentials.names[0]}=YOUR-KEY")


def check_secrets(config: ContainerConfig, plan: Plan) -> Check:
    """Whether the secrets that are to be passed on are set here. No value is looked at."""
    unset = [name for name in config.secrets if name not in plan.variables]
    if unset:
        found = f"{', '.join(unset)} not set here, so the agent goes without"
        return Check(name="secrets", status="warn", found=found, fix=f"export {unset[0]}=VALUE")
    return _ok("secrets", f"{', '.join(config.secrets)} passed on" if config.secrets else "none are asked for")


# The engine


def _engine(engine: Engine) -> Check:
    real, called = engine.dialect.name, Path(engine.binary).name
    alias = f", under the name {called}" if real not in called else ""
    return _ok("engine", f"{real} {engine.version}{alias}")


def without_engine(error: ContainerRunnerError, wanted: str) -> Check:
    """The check for an engine that is not there, or does not answer as one."""
    if isinstance(error, EngineNotFoundError):
        fix = _install(wanted if wanted in ("docker", "podman") else "podman")
        return Check(name="engine", status="fail", found=error.message, fix=fix)
    fix = error.next_step
    if isinstance(error, EngineTimeoutError) and "podman" not in Path(wanted).name:
        fix = _restart(fix)  # some clients ask the daemon even for `--version`
    return Check(name="engine", status="fail", found=_told(error), fix=fix)


def without_daemon(error: ContainerRunnerError, engine: Engine) -> Check:
    """The check for a daemon that does not answer, or not us."""
    fix = error.next_step
    environ = host_environment()
    if isinstance(error, EnginePermissionError):
        fix = _join_the_group(_socket(environ))
    elif isinstance(error, EngineUnreachableError):
        elsewhere = next(
            (name for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST") if environ.get(name)), ""
        )
        if elsewhere:
            fix = f"unset {elsewhere}    # or start the engine that it names"
        elif platform.system() == "Darwin":
            fix = "open -a Docker" if engine.dialect.name == "docker" else "podman machine start"
        elif shutil.which("dockerd", path=f"{environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            fix = _install("docker")
        else:
            fix = _as_root(_start_docker())
        if engine.dialect.name == "docker" and shutil.which("podman", path=environ.get("PATH")):
            fix += "    # or use podman: --engine=podman"
    elif isinstance(error, EngineTimeoutError) and engine.dialect.name == "docker":
        fix = _restart(fix)
    return Check(name="daemon", status="fail", found=_told(error), fix=fix)


def _restart(otherwise: str) -> str:
    """The line that ends a daemon that hangs, and starts it anew; *otherwise* where it is not this machine's."""
    if host_environment().get("DOCKER_HOST") or platform.system() == "Darwin":
        return otherwise
    if _has_systemd():
        return _as_root("systemctl restart docker")
    return _as_root(f"kill -KILL $(cat /var/run/docker.pid); {_start_docker()}")  # it obeys nothing else


def _start_docker() -> str:
    """The line that starts Docker's daemon, where there is one."""
    if _has_systemd():
        return "systemctl start docker"
    by_hand = "{ nohup dockerd >/var/log/dockerd.log 2>&1 & }"
    # A service script may fail where the daemon does not: it raises limits, which a container or a sandbox forbids.
    return f"service docker start || {by_hand}" if Path("/etc/init.d/docker").exists() else by_hand


def _socket(environ: Mapping[str, str]) -> Path:
    """Docker's socket."""
    host = environ.get("DOCKER_HOST", "")
    return Path(host.removeprefix("unix://") if host.startswith("unix://") else "/var/run/docker.sock")


def _join_the_group(socket: Path) -> str:
    """The line that lets us speak to a socket: into its group, and if it has none of its own, a group for it before."""
    group, steps = "docker", list[str]()
    with suppress(OSError, KeyError):
        found = socket.stat()
        if found.st_gid and found.st_mode & 0o060 == 0o060:
            group = grp.getgrgid(found.st_gid).gr_name
        else:  # made before the group was, or by a daemon that knows of none; root's own group is not for joining
            path = shlex.quote(str(socket))
            steps = [f"groupadd -f {group}", f"chgrp {group} {path}", f"chmod 660 {path}"]
    joined = _as_root(*steps, f"usermod -aG {group} {_our_name()}")
    return f"{joined} && newgrp {group}    # whoever is in this group is as good as root"


def _our_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "$USER"


async def _ask(engine: Engine, command: Sequence[str]) -> Mapping[str, Any]:
    done = await engine.run(command, check=False)
    if done.returncode != 0:  # docker then prints a JSON object all the same, with nothing in it
        raise classify(attrs.evolve(done, stdout=b""), command[1])
    try:
        answer = orjson.loads(done.stdout)
    except orjson.JSONDecodeError:
        raise EngineError(f"The engine's `{command[1]}` printed no JSON: {done.text[:200]!r}.") from None
    return answer if isinstance(answer, dict) else {}


def check_daemon(engine: Engine, info: Mapping[str, Any]) -> Check:
    """That there is a daemon, or that none is needed."""
    if engine.dialect.name == "podman":
        return _ok("daemon", "podman needs none")
    return _ok("daemon", f"Docker Engine {info.get('ServerVersion', '?')} on {info.get('OperatingSystem', '?')}")


def check_rootless(engine: Engine, info: Mapping[str, Any]) -> Check:
    """Whose rights the engine itself has."""
    if engine.dialect.keep_id:
        return _ok("rootless", "yes: the engine has your rights and no more")
    if _is_rootless_docker(info):
        # Its container's uid 1000 is a uid above 100000 on the host, and it has no keep-id.
        found = "yes, as Docker does it: only the container's root can write what is yours"
        return Check(name="rootless", status="warn", found=found, fix="container-runner run --user=root …")
    return _ok("rootless", "no: the engine is root, the agent is not")


def check_versions(engine: Engine, info: Mapping[str, Any], versions: Mapping[str, Any]) -> Check:
    """Whether a version is known to be bad. Distributions repair some without a new number, so it only warns."""
    bad: list[str] = []
    if engine.dialect.name == "docker" and (28, 0, 0) <= _number(engine.version) <= (28, 0, 2):
        bad.append(f"the docker client {engine.version} cuts off the end of what `docker run` prints (28.0.3 does not)")
    runc = _runc(engine, info, versions)
    if runc and (vulnerabilities := runc_vulnerabilities(runc)):
        fixes = ", ".join(vulnerabilities)
        bad.append(f"runc {runc} is older than the fixes of {fixes}, unless your distribution has added them to it")
    names = [f"{engine.dialect.name} client {engine.version}", *([f"runc {runc}"] if runc else [])]
    if bad:
        package = "docker-ce-cli" if "client" in bad[0] else "runc"
        return Check(name="versions", status="warn", found="; ".join(bad), fix=_install(package, upgrade=True))
    note = ""
    if engine.dialect.name == "podman" and _number(engine.version) < (5, 1):
        note = "; its `rm` of several containers may leave some, so we remove one at a time"
    return _ok("versions", f"{', '.join(names)}{note}")


def runc_vulnerabilities(version: str) -> list[str]:
    """The ways out of a container that were repaired in a later runc than this."""
    number = _number(version)
    found = ["CVE-2024-21626"] if number < (1, 1, 12) else []
    if number < (1, 2, 8) or (1, 3) <= number < (1, 3, 3):
        found += ["CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"]
    return found


def _runc(engine: Engine, info: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
    if engine.dialect.name == "podman":
        said = str(_at(info, "host", "ociRuntime", "version"))
        return said.removeprefix("runc version ").split("\n")[0] if said.startswith("runc ") else ""
    for part in _at(versions, "Server", "Components") or []:
        if isinstance(part, dict) and part.get("Name") == "runc":
            return str(part.get("Version", ""))
    return ""


def _is_rootless_docker(info: Mapping[str, Any]) -> bool:
    return any("rootless" in str(option) for option in info.get("SecurityOptions") or [])


# The image and the box


async def _image(engine: Engine, config: ContainerConfig) -> Check:
    try:
        image_id = (await engine.run(argv.image_argv(engine.binary, config.image))).text.strip()
    except ImageNotFoundError as error:
        if config.pull != "never":
            return _ok("image", f"{config.image} was pulled")
        return Check(name="image", status="fail", found=_told(error), fix=_get_image(engine, config))
    except ContainerRunnerError as error:
        return Check(name="image", status="fail", found=_told(error), fix=error.next_step)
    return _ok("image", f"{config.image} ({image_id.removeprefix('sha256:')[:12]})")


def _get_image(engine: Engine, config: ContainerConfig) -> str:
    first, slash, _ = config.image.partition("/")
    flag = _engine_flag(config.engine)
    if slash and set(first) & set(".:"):
        return f"{engine.binary} pull {config.image}"
    folder, _, agent = config.image.partition(":")[0].rpartition("/")
    agent = agent if folder == "container-runner" and agent in AGENTS else "claude"
    words = "container-runner image build" if agent == "claude" else f"container-runner image build {agent}"
    if config.image.removesuffix(":latest") == f"container-runner/{agent}":
        return f"{words}{flag}"
    return f"{words} --tag={config.image}{flag}"


def _engine_flag(wanted: str) -> str:
    return "" if wanted == "auto" else f" --engine={shlex.quote(wanted)}"


PROBE: Final = f"""\
say() {{ printf '%s\\t%s\\n' "$1" "$2"; }}
try() {{
  file=$2/.container-runner-doctor-${paths.MARK}
  if (: >"$file") 2>/dev/null && rm -f "$file" 2>/dev/null; then say "$1" yes; else say "$1" no; fi
}}
get() {{ for file in $2; do [ ! -r "$file" ] || {{ read -r value <"$file"; say "$1" "$value"; return; }}; done; }}
while read -r key value rest; do
  case $key in Uid: | CapBnd: | NoNewPrivs: | Seccomp:) say "${{key%:}}" "$value" ;; esac
done </proc/self/status
try root /
try tmp /tmp
try home "$HOME"
try workspace {paths.WORKSPACE}
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


class _Probe(CommandLineRuntime):
    """A runtime that is given all that another one's agent would be, and runs `PROBE` instead of it."""

    def __init__(self, runtime: CommandLineRuntime) -> None:
        self._runtime = runtime

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        command = self._runtime.command(options, contained=contained)
        # Only of claude do we know that --version does nothing else.
        mode = "version" if isinstance(self._runtime, ClaudeRuntime) else "-"
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
    sessions = sessions_folder(runner.state_dir.resolve(), options.agent.name)
    new = [folder for folder in (sessions, sessions.parent, runner.state_dir) if not folder.exists()]
    said: dict[str, tuple[str, ...]] = {}
    failure: ErrorMessage | None = None
    probe = ContainerRunner(_Probe(runner.runtime), config, runner.state_dir, records=False)
    try:
        async with aclosing(probe.execute(options)) as messages:
            async for message in messages:
                if isinstance(message, OutputLine):
                    name, _, value = message.text.partition("\t")
                    said[name] = (*said.get(name, ()), value)
                elif isinstance(message, ErrorMessage):
                    failure = message
    finally:
        for folder in new:
            with suppress(OSError):  # something else is in it by now
                folder.rmdir()
    return said, failure


def _failed(failure: ErrorMessage, engine: Engine, config: ContainerConfig) -> Check:
    """The check that the failure of the run belongs to."""
    checks = {
        "image_not_found": ("image", _get_image(engine, config)),
        "pull_failed": ("image", f"{engine.binary} pull {config.image}"),
        "image_unsuitable": ("tools", _other_image(config)),
        "network_not_found": ("network", f"{engine.binary} network create {shlex.quote(config.network)}"),
        "state": ("sessions", failure.next_step),
    }
    name, fix = checks.get(failure.kind, ("box", failure.next_step))
    if engine.dialect.name == "podman" and "cgroups in hybrid mode not supported" in failure.stderr:
        fix = _use_runc(engine)
    stderr = failure.stderr.strip()
    return Check(name=name, status="fail", found=f"{failure.message}\n{stderr}" if stderr else failure.message, fix=fix)


def _use_runc(engine: Engine) -> str:
    """The line that lets podman use runc, which runs where crun refuses to."""
    folder = "~/.config/containers/containers.conf.d" if engine.dialect.keep_id else "/etc/containers/containers.conf.d"
    write = rf"""printf '[engine]\nruntime = "runc"\n' >{folder}/runc.conf"""
    if engine.dialect.keep_id:
        return f"{_install('runc')} && mkdir -p {folder} && {write}"
    return f"{_install('runc')} && {_as_root(f'mkdir -p {folder}', write)}"


def check_inside(
    runner: ContainerRunner,
    options: ExecuteOptions,
    engine: Engine,
    info: Mapping[str, Any],
    said: Mapping[str, tuple[str, ...]],
) -> Iterator[Check]:
    """What `PROBE` said, as checks."""
    config, program = runner.config, _command(runner, options).argv[0]

    def one(name: str) -> str:
        return said.get(name, ("",))[0]

    yield _box(config, one)
    yield _ok("tools", f"sh, {', '.join(guest.TOOLS)}")
    yield _agent(config, program, one)
    state, agent = runner.state_dir.resolve(), options.agent
    user = User.of(config, None if agent.workspace is None else Path(agent.workspace).expanduser().resolve())
    if config.workspace_mode == "ro":
        yield _ok("workspace", "read-only, as configured")
    elif agent.workspace is None:
        yield _writable("workspace", "a scratch folder", one("workspace"), user, None, engine, info)
    else:
        folder = Path(agent.workspace).expanduser().resolve()
        yield _writable("workspace", str(folder), one("workspace"), user, folder, engine, info)
    folder = sessions_folder(state, agent.name)
    yield _writable("sessions", str(folder), one("sessions"), user, folder, engine, info)
    yield _network(runner, engine, said.get("network", ()))


def _box(config: ContainerConfig, one: Callable[[str], str]) -> Check:
    open_ = [
        *(["it has capabilities"] if one("CapBnd").strip("0") else []),
        *(["it may gain privileges"] if one("NoNewPrivs") != "1" else []),
        *(["it may make any system call"] if one("Seccomp") != "2" else []),
        *(["it can write the image's files"] if config.read_only and one("root") == "yes" else []),
    ]
    if open_:
        fix = "container-runner argv --json …    # and look for what undoes the box, such as extra_args"
        return Check(name="box", status="warn", found=f"the box is not closed: {'; '.join(open_)}", fix=fix)
    for name, place in (("tmp", "/tmp"), ("home", "HOME")):  # noqa: S108  a path in the container
        if one(name) != "yes":
            return Check(
                name="box", status="fail", found=f"the agent can not write its {place}", fix=_other_image(config)
            )
    return _ok("box", f"uid {one('Uid')}, no capabilities, no new privileges, system calls filtered")


def _agent(config: ContainerConfig, program: str, one: Callable[[str], str]) -> Check:
    if not one("agent"):
        found = f"there is no {program!r} in the image {config.image}"
        return Check(name="agent", status="fail", found=found, fix=_other_image(config))
    if one("code") not in ("", "0"):
        found = f"{one('agent')} --version fails with code {one('code')}: {one('version')}"
        return Check(name="agent", status="fail", found=found, fix=_other_image(config))
    version = f", {one('version')}" if one("version") else ""
    return _ok("agent", f"{one('agent')}{version}")


def _writable(
    name: str, where: str, answer: str, user: User, folder: Path | None, engine: Engine, info: Mapping[str, Any]
) -> Check:
    if answer == "yes":
        return _ok(name, f"{where}, writable by the agent's user {user}")
    fix = "container-runner run --user=root …" if _is_rootless_docker(info) else None
    if fix is None and folder is not None:
        fix = _give(user, folder, engine)
    return Check(name=name, status="fail", found=f"the agent's user {user} can not write in {where}", fix=fix)


def _network(runner: ContainerRunner, engine: Engine, interfaces: Sequence[str]) -> Check:
    wanted, others = runner.config.network, [name for name in interfaces if name != "lo"]
    if wanted == "none":
        if isinstance(runner.runtime, ClaudeRuntime):
            found = "none, as configured: an agent that asks a model on the internet will fail"
            return Check(name="network", status="warn", found=found, fix="container-runner run --network=bridge …")
        return _ok("network", "none, as configured")
    if not others and wanted != "host":
        found = f"{wanted}, but the box has no network interface"
        return Check(name="network", status="fail", found=found, fix=f"{runner.config.engine} network inspect {wanted}")
    closed = sorted(port.host_port for port in runner.config.ports if port.host_port < _first_port(engine))
    if closed:  # the box had no ports, for a kept container may hold them
        found = f"a rootless engine may not open the port {closed[0]}; those from {_first_port(engine)} on it may"
        fix = (
            f"{_as_root(f'sysctl net.ipv4.ip_unprivileged_port_start={closed[0]}')}    # or another --port, as 8080:80"
        )
        return Check(name="network", status="fail", found=found, fix=fix)
    return _ok("network", f"{wanted} ({', '.join(others) or 'lo'})")


def _first_port(engine: Engine) -> int:
    """The first port of the host that the engine may open."""
    if not engine.dialect.keep_id:
        return 0
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text("ascii"))
    except (OSError, ValueError):
        return 0


# Limits


def check_limits(
    engine: Engine, info: Mapping[str, Any], config: ContainerConfig | None, said: Mapping[str, tuple[str, ...]]
) -> Check:
    """Which limits hold: as measured in the box, or as the engine says where no box was to be had."""
    version, holds = engine_limits(engine, info)
    if config is not None:
        holds = measured_limits(config, said)
    rootless = ", rootless" if engine.dialect.keep_id or _is_rootless_docker(info) else ""
    without = [name for name in ("memory", "processes", "processors") if name not in holds]
    if not without:
        return _ok("limits", f"cgroup v{version}{rootless}: memory, processes and processors are limited")
    found = f"cgroup v{version}{rootless}: no limit on {', '.join(without)}, whatever the configuration says"
    return Check(name="limits", status="warn", found=found, fix=_enable_limits(version, bool(rootless)))


def engine_limits(engine: Engine, info: Mapping[str, Any]) -> tuple[str, set[str]]:
    """The cgroup version, and which of "memory", "processes" and "processors" the engine can limit."""
    if engine.dialect.name == "podman":
        controllers = {"memory": "memory", "pids": "processes", "cpu": "processors"}
        usable = _at(info, "host", "cgroupControllers") or []
        version = str(_at(info, "host", "cgroupVersion") or "?").removeprefix("v")
        return version, {controllers[name] for name in usable if name in controllers}
    flags = {"MemoryLimit": "memory", "PidsLimit": "processes", "CPUShares": "processors"}
    return str(info.get("CgroupVersion", "1")), {what for flag, what in flags.items() if info.get(flag)}


def measured_limits(config: ContainerConfig, said: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Which of "memory", "processes" and "processors" are limited as configured, read in the box."""

    def at_most(name: str, limit: int) -> bool:
        value = said.get(name, ("",))[0]
        return value.isdecimal() and int(value) <= limit

    # On cgroup v2 the shares become a weight, by a formula that has changed; an untouched one is 100.
    shared = said.get("shares") == (str(config.cpu_shares),)
    weighed = said.get("weight", ("100",)) != ("100",) or (config.cpu_shares == 1024 and "weight" in said)
    return {
        *(["memory"] if at_most("memory", config.memory) else []),
        *(["processes"] if at_most("pids", config.pids_limit) else []),
        *(["processors"] if shared or weighed else []),
    }


def _enable_limits(version: str, rootless: bool) -> str:
    if not rootless:
        return f"{_as_root('grep . /proc/cgroups')}    # a 0 in the last column is a controller that the kernel lacks"
    if not _has_systemd():
        return "container-runner run …    # as root: without systemd only the limits of an engine of root's hold"
    if version == "1":
        argument = "systemd.unified_cgroup_hierarchy=1"
        if _family() & {"debian", "ubuntu"}:  # they have no grubby
            folder, line = "/etc/default/grub.d", f'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {argument}"'
            write = f"echo '{line}' | {_as_root(f'tee {folder}/cgroup2.cfg')}"
            return f"{_as_root(f'mkdir -p {folder}')} && {write} && {_as_root('update-grub', 'reboot')}"
        return _as_root(f"grubby --update-kernel=ALL --args={argument}", "reboot")
    folder = "/etc/systemd/system/user@.service.d"
    write = rf"printf '[Service]\nDelegate=cpu cpuset io memory pids\n' | {_as_root(f'tee {folder}/delegate.conf')}"
    reload = _as_root("systemctl daemon-reload")
    return f"{_as_root(f'mkdir -p {folder}')} && {write} && {reload}    # and log in again"


def _has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


# Words


def _command(runner: ContainerRunner, options: ExecuteOptions) -> Command:
    return runner.runtime.command(options, contained=True)


def _other_image(config: ContainerConfig) -> str:
    flag = _engine_flag(config.engine)
    return f"container-runner image build{flag} && container-runner doctor --image={DEFAULT_IMAGE}{flag}"


def _told(error: ContainerRunnerError) -> str:
    return "\n".join(filter(None, (error.message, error.stderr.strip())))


def _as_root(*commands: str) -> str:
    """The line by which a person runs these as root, who may be it already, or may have no sudo."""
    line = " && ".join(commands)
    if os.geteuid() == 0:
        return line
    if shutil.which("sudo") is None:
        return f"su - -c {shlex.quote(line)}"  # without the first dash it has no /usr/sbin
    if set("|><&") & set("".join(commands)):
        return f"sudo sh -c {shlex.quote(line)}"
    return " && ".join(f"sudo {command}" for command in commands)


def _install(package: str, *, upgrade: bool = False) -> str:
    """The line that installs a package, for the system that this is."""
    if platform.system() == "Darwin":
        return f"brew {'upgrade' if upgrade else 'install'} {package}"
    family = _family()
    if family & {"debian", "ubuntu"}:
        package = {"docker": "docker.io"}.get(package, package)
        # A new machine's list of packages is empty, an old one's names files that are gone.
        return _as_root("apt-get update", f"apt-get install {'--only-upgrade ' if upgrade else ''}{package}")
    if family & {"fedora", "rhel", "centos"}:
        return _as_root(f"dnf {'upgrade' if upgrade else 'install'} {package}")
    if "arch" in family:
        return _as_root(f"pacman -S {package}")
    if "alpine" in family:
        return _as_root(f"apk add {'--upgrade ' if upgrade else ''}{package}")
    return f"# {'upgrade' if upgrade else 'install'} {package} with your system's package manager"


def _family() -> set[str]:
    """The distribution, and those that it is like."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return set()
    return {release.get("ID", ""), *release.get("ID_LIKE", "").split()}


def _number(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
