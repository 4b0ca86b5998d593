"""What a box is made of: `ContainerConfig`, with the values of `container_runner.config.values` in it.

It is frozen, checked when it is made, and pure: only `ContainerConfig.load` reads a file. What needs the
machine (does a folder exist, is an image there) is checked by those who use it. A value that is refused
raises `ConfigError`, and nothing else, whatever the value was.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, TypeVar

import attrs

from container_runner.config import paths
from container_runner.config.converter import parse_toml, structured
from container_runner.config.hosts import SETS, is_host_rule, is_network
from container_runner.config.keys import refuse_key
from container_runner.config.laws import (
    NOT_SHOWN,
    boolean,
    each,
    flag_only,
    frozen,
    is_cpus,
    is_device,
    is_engine,
    is_extra_arg,
    is_gpus,
    is_history,
    is_host_entry,
    is_ignore_pattern,
    is_image,
    is_name,
    is_place,
    is_ulimit,
    is_variable,
    law,
    one_of,
    optional,
    refuse,
    strings,
    user,
    valid_env,
    valid_labels,
    whole,
)
from container_runner.config.protected import PROTECTED
from container_runner.config.servers import HostServer, is_server_name
from container_runner.config.values import OWN_TARGETS, Injection, Mount, PortBinding, Tmpfs
from container_runner.options import by_name
from container_runner.quantities import DAY, GIB, MIB, parse_duration, parse_size

_V = TypeVar("_V", Injection, Mount, PortBinding, Tmpfs)


def _values(kind: type[tuple[_V, ...]], field: str, given: Sequence[_V | str | Mapping[str, Any]]) -> tuple[_V, ...]:
    if isinstance(given, tuple) and all(isinstance(item, typing.get_args(kind)[0]) for item in given):
        return given
    return structured(kind, given, field)


def _memory(value: int | str) -> int:
    return parse_size(value, "memory", least=6 * MIB)


def _shm_size(value: int | str) -> int:
    return parse_size(value, "shm_size")


def _disk_limit(value: int | str) -> int:
    return parse_size(value, "disk_limit", least=MIB)


def _time_limit(value: float | str) -> int:
    return int(parse_duration(value, "time_limit", least=60, most=30 * DAY))


def _volumes(value: Sequence[Mount | str | Mapping[str, Any]]) -> tuple[Mount, ...]:
    return _values(tuple[Mount, ...], "volumes", value)


def _ports(value: Sequence[PortBinding | str | Mapping[str, Any]]) -> tuple[PortBinding, ...]:
    return _values(tuple[PortBinding, ...], "ports", value)


def _inject(value: Sequence[Injection | str | Mapping[str, Any]]) -> tuple[Injection, ...]:
    return _values(tuple[Injection, ...], "inject", value)


def _host_servers(value: object) -> Mapping[str, HostServer]:
    if isinstance(value, Mapping) and all(isinstance(server, HostServer) for server in value.values()):
        return MappingProxyType(dict(value))
    return MappingProxyType(structured(Mapping[str, HostServer], value, "host_mcp_servers"))  # type: ignore[type-abstract]  # cattrs takes it


def _tmpfs(value: Sequence[Tmpfs | str | Mapping[str, Any]]) -> tuple[Tmpfs, ...]:
    return _values(tuple[Tmpfs, ...], "tmpfs", value)


@by_name(refuse_key)
@attrs.frozen(kw_only=True)
class ContainerConfig:
    """The box that an agent runs in. Only `image` is required; by default an agent gets little more than that.

    Lists may be given as lists or tuples, sizes and times as strings, and what is in `volumes`, `ports` and
    `tmpfs` as values, strings or tables. `attrs.evolve` makes a changed copy, checked again.

    Attributes:
        image: The image, as in `docker run`: `name`, `name:tag`, `registry/name@sha256:...`. It needs a shell and the
            agent; it is not pulled unless `pull` says so.
        engine: `auto` takes what the variable CONTAINER_RUNNER_ENGINE names; else docker, if it is there and so is its
            daemon's socket (or DOCKER_HOST, or DOCKER_CONTEXT); else podman. `docker`, `podman`, or the name or path of
            a program that understands the same arguments.
        ephemeral: Whether each run has a container of its own, removed at its end. `false` keeps one for the next run,
            which is faster and lets one run see what another left.
        network: `gateway` lets the agent reach its model, and what `allow_hosts` names, by way of this process; its
            container has no network. `bridge` lets it reach the internet. `none` cuts it off, and the name of a network
            that you made decides for itself. `host` removes the wall between the agent and every service on this
            machine.
        allow_hosts: What the agent may reach by way of the gateway: "github.com" (ports 80 and 443),
            "*.example.com" (all below it), "db.example.com:5432", or with "@" a set: @anthropic, @openai, @google,
            @pypi, @npm, @debian, @github.
        allow_addresses: Private networks in which such a host may be, such as "10.1.0.0/16". Otherwise private
            addresses are denied, and this machine's own.
        inject: Secrets that the gateway adds to what is asked of one host as http://HOST/, so that they are never in
            the box: "HOST HEADER SECRET", or tables with the fields of `Injection`. In the box the variable holds a
            word of this run alone, which serves in the secret's place.
        tell_network: Whether the agent is told in its system prompt what it can reach, with the network `gateway` or
            `none`. Agents without a way for that refuse it.
        host_mcp_servers: MCP servers of this machine that the agent may use, by name: a command, which is started here
            for each run, or the URL of one that runs; or tables with the fields of `HostServer`. They can do what you
            can, for an agent that nobody watches.
        memory: The memory limit, as a size of at least "6m" ("512m", "2g", or bytes). Swap is off, so it is the limit
            of both. An agent that needs more is killed.
        cpu_shares: The weight against other containers when the processors are busy, 2 to 262144. An engine's own
            default is 1024, so that an agent gives way to the rest of the machine.
        cpus: The most processors that it may use, such as `1.5`. None: all of them.
        cpu_period: The scheduler's period in microseconds, 1000 to 1000000, for `cpu_quota`. `cpus` says the same in
            one number, so the two are not given together.
        cpu_quota: The microseconds of processor time in each `cpu_period`, at least 1000.
        pids_limit: The most processes and threads at a time, at least 16, so that a fork bomb stays in the box. To the
            engines 0 and -1 mean unlimited, so both are refused.
        user: Who the agent is in the container: "UID:GID" in numbers; "UID" alone stands for the group of the same
            number. None: you, or the workspace's owner if you are root. The uid 0 is refused, because what root writes
            to the workspace is root's, unless it is spelled `root`, which stands for 0:0.
        max_containers: The most kept containers of one agent, from 1. Beyond it, those that nobody uses are removed,
            oldest first.
        pool: How many unused containers `ContainerRunner.warm` keeps ready, so that an ephemeral run starts faster.
            Each is used once.
        volumes: More folders of the host: "host:container", with ":ro" to only read them, or tables with the fields of
            `Mount`. Folders that hold keys or the system are refused when the container is made.
        workspace_mode: `rw` lets the agent change the workspace, `ro` only read it, and `carried` gives it a copy whose
            changes come back as data, so that nothing of this machine is writable in the box.
            docs/explanation/carried.md tells how.
        workspace_target: Where the workspace is in the container: at `/workspace`, or, with `same`, at its own path of
            this machine, so that absolute paths in it, as those of a Python environment, hold on both sides. The agent
            and its model then see that path.
        carry: How a carried workspace gets into the box. `overlay` lays what the agent writes over the folder, which
            takes no time and shows it all of it, `stream` copies what git does not ignore into a volume, and `auto`
            takes the first that the engine can do.
        carry_ignored: Patterns, as in .gitignore, of ignored files that a stream takes along, such as ".env.test".
        history: How many commits of history a stream takes along: a number from 0, or `all`.
        unprotected: Paths in a writable workspace that the agent may write although the host acts on them later:
            `.git/hooks`, `.git/config`, `.claude`, `.envrc` and the like are read-only if they exist. `.git` stands for
            all below it. docs/how-to/configuration.md has the list.
        protected: More paths in the workspace that the host acts on later, such as "deploy.sh" or "ops/hooks". They are
            read-only if they exist; in work that is applied later, each change to one is left out until it is named,
            and there a name without a "/" counts in every folder. `.git/commondir` is made where it is missing.
        credentials: How the agent gets its login. `env` passes the token variables of this process, `file` mounts the
            login file and nothing beside it, `inject` has the gateway add the token on the way out, so that it never
            is in the box, and `none` gives nothing. `auto` takes the first that there is, with a gateway `inject`
            before the others.
        env: Variables for the agent, as NAME = "value". The values are on no command line, and `repr` leaves them out;
            for a secret prefer `secrets`, which keeps it out of the configuration as well.
        secrets: Names of variables of this process to pass on to the agent. Only names: a value here is refused, and
            not repeated in the error. One that is not set ends the run before it begins.
        optional_secrets: Names of variables that are passed on in the same way if they are set.
        ports: Ports of the container to open on the host: "8080:80" (host:container), "80" for both, with an address
            before it or "/udp" after it. Without an address only this machine can connect. With the network `none` or
            `gateway` they are open while a run goes on, for TCP alone; with `host` there are none.
        tmpfs: More folders in memory, writable though `read_only` is set: "/path" or "/path:size=64m,exec,mode=700".
            /tmp is there already.
        labels: Labels for the container, keys and values of letters, digits and `_.-`, which every engine can filter
            by. Keys below `container-runner.` are ours.
        read_only: Whether the image's own files are read-only in the container, so that nothing outside of the
            workspace, the volumes and the tmpfs folders can be changed.
        pull: When to fetch the image. `never` runs what you built or fetched and nothing else, `missing` fetches it if
            it is not here, `always` asks for a newer one each time.
        ulimits: Limits of each process, as "name=soft" or "name=soft:hard"; -1 is unlimited. Core dumps, which would
            hold the agent's memory, are off whatever stands here.
        gpus: Graphics processors: `all`, how many ("2"), or which ("device=0,1"). None: none.
        disk_limit: How much a run may add to the folders of this machine that its agent can write, its sessions folder
            among them, as a size of at least "1m". They are measured now and then, and a run that is over it ends: a
            watch and no wall, for which file systems have quotas. None: as much as there is room for.
        shm_size: The size of /dev/shm, as a size. None: the engine's default, 64m. Browsers want more.
        add_host: Names for the container's hosts file, as "name:address"; the address `host-gateway` is this machine.
        devices: Devices of the host, as "/dev/x", "/dev/x:/dev/y" or "/dev/x:/dev/y:rwm". Each is a hole in the box.
        extra_args: More flags for the engine's `run`, such as "--runtime=runsc", each with its value in one word. They
            come last and win, and are not otherwise checked: `--privileged`, `--cap-add` or `--security-opt` here undo
            what the rest of this page does. Paths must be absolute. Everybody on the machine can see them, so no
            secrets.
        time_limit: The time after which a container ends by itself, whatever happened to us: "60s" to "30d", or
            seconds. The default is "1d".

    Raises:
        ConfigError: for a value that is refused.
    """

    image: str = attrs.field(validator=law("an image's name such as python:3.12-slim", is_image))
    engine: str = attrs.field(
        default="auto", validator=law("auto, docker, podman, or a program's name or path", is_engine)
    )
    ephemeral: bool = attrs.field(default=True, validator=boolean)
    network: str = attrs.field(
        default="bridge",
        validator=law(
            "gateway, none, bridge, host or a network's name (container:NAME would share another container's network)",
            is_name,
        ),
    )
    allow_hosts: tuple[str, ...] = attrs.field(
        default=(),
        converter=strings,
        validator=each(f"a host such as github.com, *.example.com, db.example.com:5432 or {SETS}", is_host_rule),
    )
    allow_addresses: tuple[str, ...] = attrs.field(
        default=(), converter=strings, validator=each("a network such as 10.1.0.0/16, or an address", is_network)
    )
    inject: tuple[Injection, ...] = attrs.field(default=(), converter=_inject)
    tell_network: bool = attrs.field(default=False, validator=boolean)
    host_mcp_servers: Mapping[str, HostServer] = attrs.field(
        factory=dict, converter=_host_servers, hash=False, repr=lambda servers: repr(dict(servers))
    )
    memory: int = attrs.field(default=2 * GIB, converter=_memory)
    cpu_shares: int = attrs.field(default=512, validator=whole(2, 262_144))
    cpus: float | None = attrs.field(
        default=None, validator=optional(law("a number of processors from 0.01 to 10000", is_cpus))
    )
    cpu_period: int | None = attrs.field(default=None, validator=optional(whole(1_000, 1_000_000)))
    cpu_quota: int | None = attrs.field(default=None, validator=optional(whole(1_000, 10_000_000_000)))
    pids_limit: int = attrs.field(default=512, validator=whole(16, 4_194_304))
    user: str | None = attrs.field(
        default=None,
        validator=optional(user),
    )
    max_containers: int = attrs.field(default=5, validator=whole(1, 10_000))
    pool: int = attrs.field(default=0, validator=whole(0, 100))
    volumes: tuple[Mount, ...] = attrs.field(default=(), converter=_volumes)
    workspace_mode: Literal["rw", "ro", "carried"] = attrs.field(default="rw", validator=one_of("rw", "ro", "carried"))
    workspace_target: Literal["/workspace", "same"] = attrs.field(
        default="/workspace", validator=one_of("/workspace", "same")
    )
    carry: Literal["auto", "overlay", "stream"] = attrs.field(
        default="auto", validator=one_of("auto", "overlay", "stream")
    )
    carry_ignored: tuple[str, ...] = attrs.field(
        default=(),
        converter=strings,
        validator=each("a pattern of .gitignore on one line that does not begin with ! or #", is_ignore_pattern),
    )
    history: int | Literal["all"] = attrs.field(
        default="all", validator=law("a number of commits from 0, or all", is_history)
    )
    unprotected: tuple[str, ...] = attrs.field(
        default=(),
        converter=strings,
        validator=each(f"one of {', '.join(PROTECTED)}", lambda value: value in PROTECTED),
    )
    protected: tuple[str, ...] = attrs.field(
        default=(),
        converter=strings,
        validator=each(
            "a path in the workspace, such as ops/hooks, or .git/commondir",
            lambda value: value == ".git/commondir" or is_place(value),
        ),
    )
    credentials: Literal["auto", "env", "file", "inject", "none"] = attrs.field(
        default="auto", validator=one_of("auto", "env", "file", "inject", "none")
    )
    env: Mapping[str, str] = attrs.field(
        factory=dict, converter=frozen, validator=valid_env, hash=False, repr=lambda env: f"{{{', '.join(env)}}}"
    )
    secrets: tuple[str, ...] = attrs.field(
        default=(),
        converter=strings,
        validator=each("the name of a variable, without its value", is_variable, lambda _: NOT_SHOWN),
    )
    optional_secrets: tuple[str, ...] = attrs.field(
        default=(),
        converter=strings,
        validator=each("the name of a variable, without its value", is_variable, lambda _: NOT_SHOWN),
    )
    ports: tuple[PortBinding, ...] = attrs.field(default=(), converter=_ports)
    tmpfs: tuple[Tmpfs, ...] = attrs.field(default=(), converter=_tmpfs)
    labels: Mapping[str, str] = attrs.field(
        factory=dict, converter=frozen, validator=valid_labels, hash=False, repr=lambda labels: repr(dict(labels))
    )
    read_only: bool = attrs.field(default=True, validator=boolean)
    pull: Literal["never", "missing", "always"] = attrs.field(
        default="never", validator=one_of("never", "missing", "always")
    )
    ulimits: tuple[str, ...] = attrs.field(
        default=(),
        converter=strings,
        validator=each('"name=soft" or "name=soft:hard", such as nofile=1024:2048', is_ulimit),
    )
    gpus: str | None = attrs.field(default=None, validator=optional(law('"all", "2" or "device=0,1"', is_gpus)))
    disk_limit: int | None = attrs.field(default=None, converter=attrs.converters.optional(_disk_limit))
    shm_size: int | None = attrs.field(default=None, converter=attrs.converters.optional(_shm_size))
    add_host: tuple[str, ...] = attrs.field(
        default=(), converter=strings, validator=each('"name:address" or "name:host-gateway"', is_host_entry)
    )
    devices: tuple[str, ...] = attrs.field(
        default=(),
        converter=strings,
        validator=each('"/dev/x", "/dev/x:/dev/y" or "/dev/x:/dev/y:rwm", without \'..\'', is_device),
    )
    extra_args: tuple[str, ...] = attrs.field(
        default=(),
        converter=strings,
        validator=each(
            "one flag in one word, such as --runtime=runsc, with absolute paths, and none of those that every run sets"
            " itself: --entrypoint, --init, --name, --pid, --rm, --user, --workdir, -d, -i, -t and their like",
            is_extra_arg,
            flag_only,
        ),
    )
    time_limit: int = attrs.field(default=DAY, converter=_time_limit)

    def __attrs_post_init__(self) -> None:
        if self.cpus is not None and (self.cpu_period is not None or self.cpu_quota is not None):
            refuse("cpus", self.cpus, "either cpus, or cpu_period and cpu_quota")
        if self.ports and self.network == "host":
            ports = [port.host_port for port in self.ports]
            refuse("ports", ports, "none with network = host, where there are no ports to open")
        targets = set(OWN_TARGETS)
        for field in ("volumes", "tmpfs"):
            for index, value in enumerate(getattr(self, field)):
                if f"{value.target}/".startswith(f"{paths.ROOT}/"):
                    refuse(f"{field}[{index}]", value.target, f"a path that is not below {paths.ROOT}, which is ours")
                if value.target in targets:
                    refuse(f"{field}[{index}]", value.target, f"one mount for a path; {value.target} has one")
                targets.add(value.target)
        for field in ("secrets", "optional_secrets"):
            for index, name in enumerate(getattr(self, field)):
                if name in self.env:
                    refuse(f"{field}[{index}]", name, "a variable that env does not set as well")
        for name in self.host_mcp_servers:
            if not is_server_name(name):
                refuse("host_mcp_servers", name, "names of 1 to 32 letters, digits, - and _, and not container_runner")
        self._check_injected()
        if self.workspace_mode == "carried":
            self._check_carried()
        listening = set()
        for index, port in enumerate(self.ports):
            end = (port.host_ip, port.host_port, port.protocol)
            if port.protocol == "udp" and not self.has_network:
                refuse(f"ports[{index}]", port.host_port, f"a TCP port with network = {self.network}")
            if end in listening:
                refuse(f"ports[{index}]", port.host_port, "one binding for an address and port of the host")
            listening.add(end)

    @property
    def has_network(self) -> bool:
        """Whether the engine gives the container a network."""
        return self.network not in {"none", "gateway"}

    @property
    def published(self) -> tuple[PortBinding, ...]:
        """The `ports` that the engine opens. Without a network, the run's own process opens them."""
        return self.ports if self.has_network else ()

    def _check_injected(self) -> None:
        """Refuse two values for one header, and a secret that would be in the box all the same."""
        seen: dict[tuple[str, int], dict[str, tuple[str, ...]]] = {}
        for index, one in enumerate(self.inject):
            others = seen.setdefault(one.address, {})
            if one.shape[0] in others:
                refuse(f"inject[{index}].header", one.shape[0], f"one value for a header of {one.host}")
            if any(allowed != one.allowed for allowed in others.values()):
                refuse(f"inject[{index}].allowed", one.allowed, f"the same for all headers of {one.host}")
            others[one.shape[0]] = one.allowed
            if one.secret in (*self.env, *self.secrets, *self.optional_secrets):
                allowed = "a variable that is not given to the agent by env, secrets or optional_secrets as well"
                refuse(f"inject[{index}].secret", one.secret, allowed)

    def _check_carried(self) -> None:
        """Refuse what a carried workspace can not be combined with."""
        if not self.ephemeral:
            allowed = (
                'ephemeral = true with workspace_mode = "carried", whose work is fetched when its container ends; '
                'or workspace_mode = "rw"'
            )
            refuse("ephemeral", self.ephemeral, allowed)
        if self.pool:
            allowed = 'pool = 0 with workspace_mode = "carried", which begins with the files as they are at that moment'
            refuse("pool", self.pool, allowed)
        if self.carry == "stream" and self.disk_limit is not None:
            allowed = 'None with carry = "stream", whose copy is in a volume of the engine that nobody here can measure'
            refuse("disk_limit", self.disk_limit, allowed)
        for field in ("volumes", "tmpfs"):
            for index, value in enumerate(getattr(self, field)):
                if f"{value.target}/".startswith(f"{paths.WORKSPACE}/"):
                    allowed = f"a path that is not below {paths.WORKSPACE}, all of which is carried"
                    refuse(f"{field}[{index}]", value.target, f'{allowed}; or workspace_mode = "rw"')

    @property
    def uid_gid(self) -> tuple[int, int] | None:
        """`user` in numbers, or None if it is to be chosen."""
        if self.user is None:
            return None
        uid, _, gid = self.user.replace("root", "0").partition(":")
        return int(uid), int(gid or uid)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, source: str | None = None) -> Self:
        """The configuration with the keys of *mapping*, as TOML or JSON has them.

        Args:
            mapping: the fields by name, with strings, numbers, lists and tables for their values.
            source: the file or flag that it came from, for the errors.

        Raises:
            ConfigError: for an unknown key or a value that is refused; `field` may be "volumes[0].target".
        """
        return structured(cls, mapping, source=source)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The configuration in a TOML file, whose top level has the fields.

        Raises:
            ConfigError: if the file can not be read, is not TOML, or has a value that is refused.
        """
        source = os.fspath(path)
        try:
            data = Path(path).read_bytes()
        except (OSError, ValueError) as error:  # a NUL in the path is the latter
            refuse("file", getattr(error, "strerror", str(error)), "a file that can be read", source=source)
        return cls.from_mapping(parse_toml(data, source), source=source)
