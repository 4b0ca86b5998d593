"""Each thing that a run needs, and how it stands with it."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from container_runner.agents import Credentials
from container_runner.box import argv
from container_runner.box.environment import host_environment, selinux_enforces
from container_runner.box.hints import LOGIN, no_login
from container_runner.box.plan import Plan
from container_runner.box.user import User
from container_runner.config.container import ContainerConfig
from container_runner.doctor import advice
from container_runner.engine.engine import Engine
from container_runner.errors import (
    ConfigError,
    ContainerRunnerError,
    EngineNotFoundError,
    EnginePermissionError,
    EngineTimeoutError,
    EngineUnreachableError,
    ImageNotFoundError,
)
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import ErrorMessage

Status = Literal["ok", "warn", "fail", "skip"]

NAMES: Final = (
    *("configuration", "credentials", "secrets", "engine", "daemon", "rootless", "versions"),
    *("selinux", "image", "box", "tools", "agent", "workspace", "sessions", "network", "limits"),
)
"""All checks, in the order in which they are made."""


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


def passed(name: str, found: str) -> Check:
    """A check of what is as it should be."""
    return Check(name=name, status="ok", found=found)


def refusal(error: ConfigError) -> str:
    """The name of the check that a refused value belongs to."""
    if error.field in ("image", "--image") and error.value is None:
        return "image"
    names = {"agent.workspace": "workspace", "credentials": "credentials", "state_dir": "sessions"}
    return names.get(error.field, "secrets" if re.fullmatch(r"secrets\[\d+\]", error.field) else "configuration")


def check_refused(error: ConfigError, runner: ContainerRunner | None, wanted: str, engine: Engine | None) -> Check:
    """The check that a refused value fails."""
    name = refusal(error)
    found, fix = error.message, error.next_step
    if name == "image":
        found = "no image is named, neither by --image nor in a configuration file"
        fix = advice.other_image(wanted)
    elif name == "secrets":
        found, fix = f"{error.value} is not set here", f"export {error.value}=VALUE"
    elif name == "workspace":
        folder = Path(str(error.value)).expanduser()
        if not folder.exists():
            found = f"there is no folder {error.value}"
            fix = f"mkdir -p {shlex.quote(str(error.value))}"
            if runner is not None and (user := User.of(runner.config, None)).uid not in (0, os.geteuid()):
                fix += f" && {advice.give(user, folder.absolute(), engine)}"
        elif runner is not None and " can write" in error.allowed:
            folder = folder.resolve()
            user = User.of(runner.config, folder)
            found = f"the agent's user {user} can not write in {folder}"
            fix = advice.give(user, folder, engine)
        else:
            found = f"{folder.resolve()} can not be the workspace"
            fix = f"container-runner doctor --workspace=…    # {error.allowed}"
    return Check(name=name, status="fail", found=found, fix=fix)


def check_credentials(config: ContainerConfig, credentials: Credentials, plan: Plan) -> Check:
    """Whether the agent is given something to log in with. No value is looked at."""
    name = "credentials"
    if not credentials.names:
        return passed(name, "this command needs none that we know of")
    if config.credentials == "none":
        return passed(name, "none are given, as configured")
    given = [
        variable
        for variable, value in plan.values.items()
        if value and (variable in credentials.names or LOGIN.fullmatch(variable))
    ]
    if given:
        return passed(name, f"{' and '.join(given)} from the environment")
    if any(mount.target == credentials.target for mount in plan.mounts):
        return passed(name, f"the login in {credentials.file}")
    fix = f"export {credentials.names[0]}=YOUR-KEY"
    return Check(name=name, status="fail", found=no_login(credentials), fix=fix)


def check_secrets(config: ContainerConfig, plan: Plan) -> Check:
    """Whether the secrets that are to be passed on are set here. No value is looked at."""
    asked = (*config.secrets, *config.optional_secrets)
    unset = [name for name in asked if name not in plan.variables]
    if unset:
        found = f"{', '.join(unset)} not set here, so the agent goes without"
        return Check(name="secrets", status="warn", found=found, fix=f"export {unset[0]}=VALUE")
    return passed("secrets", f"{', '.join(asked)} passed on" if asked else "none are asked for")


def check_engine(engine: Engine) -> Check:
    """Which engine it is."""
    real, called = engine.dialect.name, Path(engine.binary).name
    alias = f", under the name {called}" if real not in called else ""
    return passed("engine", f"{real} {engine.version}{alias}")


def without_engine(error: ContainerRunnerError, wanted: str) -> Check:
    """The check for an engine that is not there, or does not answer as one."""
    if isinstance(error, EngineNotFoundError):
        fix = advice.install(wanted if wanted in ("docker", "podman") else "podman")
        return Check(name="engine", status="fail", found=error.message, fix=fix)
    fix = error.next_step
    if isinstance(error, EngineTimeoutError) and "podman" not in Path(wanted).name:
        fix = advice.restart(fix)  # some clients ask the daemon even for `--version`
    return Check(name="engine", status="fail", found=_told(error), fix=fix)


def without_daemon(error: ContainerRunnerError, engine: Engine) -> Check:
    """The check for a daemon that does not answer, or not us."""
    fix = error.next_step
    environ = host_environment()
    if fix != error.advice:
        pass  # it is not the usual, and says what it is, such as certificates
    elif isinstance(error, EnginePermissionError):
        host = environ.get("DOCKER_HOST", "")
        socket = host.removeprefix("unix://") if host.startswith("unix://") else "/var/run/docker.sock"
        fix = advice.join_the_group(Path(socket))
    elif isinstance(error, EngineUnreachableError):
        elsewhere = next(
            (name for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST") if environ.get(name)), ""
        )
        if elsewhere:
            fix = f"unset {elsewhere}    # or start the engine that it names"
        elif platform.system() == "Darwin":
            fix = "open -a Docker" if engine.dialect.name == "docker" else "podman machine start"
        elif shutil.which("dockerd", path=f"{environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            fix = advice.install("docker")
        else:
            fix = advice.as_root(advice.start_docker())
        if engine.dialect.name == "docker" and shutil.which("podman", path=environ.get("PATH")):
            fix += "    # or use podman: --engine=podman"
    elif isinstance(error, EngineTimeoutError) and engine.dialect.name == "docker":
        fix = advice.restart(fix)
    return Check(name="daemon", status="fail", found=_told(error), fix=fix)


def check_daemon(engine: Engine, info: Mapping[str, Any]) -> Check:
    """That there is a daemon, or that none is needed."""
    at = f", at {engine.endpoint}" if engine.endpoint else ""
    if engine.dialect.name == "podman":
        return passed("daemon", f"podman {_at(info, 'version', 'Version')}{at}" if at else "podman needs none")
    version, system = info.get("ServerVersion", "?"), info.get("OperatingSystem", "?")
    return passed("daemon", f"Docker Engine {version} on {system}{at}")


def check_rootless(engine: Engine, info: Mapping[str, Any]) -> Check:
    """Whose rights the engine itself has."""
    if engine.dialect.keep_id:
        return passed("rootless", "yes: the engine has your rights and no more")
    if is_rootless_docker(info):
        # Its container's uid 1000 is a uid above 100000 on the host, and it has no keep-id.
        found = "yes, as Docker does it: only the container's root can write what is yours"
        return Check(name="rootless", status="warn", found=found, fix="container-runner run --user=root …")
    return passed("rootless", "no: the engine is root, the agent is not")


def check_selinux(config: ContainerConfig | None) -> Check:
    """Whether SELinux would keep an agent from its workspace, and what is done about it."""
    if not selinux_enforces():
        return passed("selinux", "not enforced on this machine")
    if config is not None and any(word.startswith("--security-opt=label") for word in config.extra_args):
        return passed("selinux", "enforced, with the label that extra_args gives the box")
    return passed("selinux", "enforced, so the box runs with label=disable: its other walls hold, this one does not")


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
        return Check(name="versions", status="warn", found="; ".join(bad), fix=advice.install(package, upgrade=True))
    note = ""
    if engine.dialect.name == "podman" and _number(engine.version) < (5, 1):
        note = "; its `rm` of several containers may leave some, so we remove one at a time"
    return passed("versions", f"{', '.join(names)}{note}")


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


def is_rootless_docker(info: Mapping[str, Any]) -> bool:
    """Whether the daemon itself runs without root."""
    return any("rootless" in str(option) for option in info.get("SecurityOptions") or [])


async def check_image(engine: Engine, config: ContainerConfig) -> Check:
    """Whether the image is there."""
    try:
        image_id = (await engine.run(argv.image_argv(engine.binary, config.image))).text.strip()
    except ImageNotFoundError as error:
        if config.pull != "never":
            return passed("image", f"{config.image} was pulled")
        return Check(name="image", status="fail", found=_told(error), fix=advice.get_image(engine, config))
    except ContainerRunnerError as error:
        return Check(name="image", status="fail", found=_told(error), fix=error.next_step)
    return passed("image", f"{config.image} ({image_id.removeprefix('sha256:')[:12]})")


def check_failed(failure: ErrorMessage, engine: Engine, config: ContainerConfig) -> Check:
    """The check that the failure of the run belongs to."""
    checks = {
        "image_not_found": ("image", advice.get_image(engine, config)),
        "pull_failed": ("image", f"{engine.binary} pull {config.image}"),
        "image_unsuitable": ("tools", advice.other_image(config.engine)),
        "network_not_found": ("network", f"{engine.binary} network create {shlex.quote(config.network)}"),
        "state": ("sessions", failure.next_step),
    }
    name, fix = checks.get(failure.kind, ("box", failure.next_step))
    if engine.dialect.name == "podman" and "cgroups in hybrid mode not supported" in failure.stderr:
        fix = advice.use_runc(engine)
    return Check(name=name, status="fail", found=_told(failure), fix=fix)


def check_limits(
    engine: Engine, info: Mapping[str, Any], config: ContainerConfig | None, said: Mapping[str, tuple[str, ...]]
) -> Check:
    """Which limits hold: as measured in the box, or as the engine says where no box was to be had."""
    version, holds = engine_limits(engine, info)
    if config is not None:
        holds = measured_limits(config, said)
    rootless = ", rootless" if engine.dialect.keep_id or is_rootless_docker(info) else ""
    without = [name for name in ("memory", "processes", "processors") if name not in holds]
    if not without:
        return passed("limits", f"cgroup v{version}{rootless}: memory, processes and processors are limited")
    found = f"cgroup v{version}{rootless}: no limit on {', '.join(without)}, whatever the configuration says"
    return Check(name="limits", status="warn", found=found, fix=advice.enable_limits(version, bool(rootless)))


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


def _told(error: ContainerRunnerError | ErrorMessage) -> str:
    return "\n".join(filter(None, (error.message, error.stderr.strip())))


def _number(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
