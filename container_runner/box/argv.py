"""The engine's command lines: one pure function a verb, each a list that reads like the command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

import attrs

from container_runner.box import script
from container_runner.box.environment import ContainerEnv, selinux_enforces
from container_runner.box.mounts import TMP_SIZE, ContainerMounts
from container_runner.box.user import User
from container_runner.config import paths
from container_runner.config.container import ContainerConfig
from container_runner.config.values import Mount, PortBinding, Tmpfs

LABEL: Final = "container-runner."
"""How the keys of all our labels begin."""


@attrs.frozen(kw_only=True)
class Dialect:
    """What differs between the engines, and the only place where it is written down."""

    name: Literal["docker", "podman"]

    run: tuple[str, ...] = ()
    """More flags for `run`."""

    blank: tuple[str, ...] = ()
    """Variables that its client would set in a container by its own configuration."""

    run_in: str | None = None
    """The folder that `run` is called in; None for the current one."""

    tmpfs: tuple[str, ...] = ()
    """More options for every tmpfs."""

    remove: tuple[str, ...] = ()
    """More flags for `rm`."""

    names_user: bool = False
    """Whether it gives the user of PID 1, if the image does not know him, a line in /etc/passwd."""

    keep_id: bool = False
    """Whether the caller's uid must be mapped to itself: without it, a rootless podman's agent can not write."""

    not_in_overlay: str = ""
    """The characters that a folder's path must not have for an overlay of it."""


# ~/.docker/config.json may name proxies, passwords included.
DOCKER: Final = Dialect(name="docker", blank=script.PROXIES)

PODMAN: Final = Dialect(
    name="podman",
    # It would pass the host's proxies, passwords included, and add writable folders of its own to a read-only root.
    run=("--http-proxy=false", "--read-only-tmpfs=false"),
    names_user=True,
    # Its monitor makes an empty file `oom` in the folder that it was started in when the container's memory runs out;
    # here nobody can make files.
    run_in="/proc",
    # It would copy what lies below into the tmpfs.
    tmpfs=("notmpcopyup",),
    # It would wait for the stop timeout first.
    remove=("--time=0",),
    # Its --volume knows no escapes.
    not_in_overlay=":,\\",
)

PODMAN_ROOTLESS: Final = attrs.evolve(PODMAN, keep_id=True)


def run_argv(
    binary: str,
    dialect: Dialect,
    config: ContainerConfig,
    *,
    name: str,
    user: User,
    mounts: ContainerMounts,
    labels: Mapping[str, str],
    env: ContainerEnv,
    run_id: str,
    command: Iterable[str] = (),
    carried: Iterable[str] = (),
    patience: int | None = None,
) -> list[str]:
    """`docker run`: start the container.

    An ephemeral one is a whole run: its PID 1 is our script, which reads header, prompt and lease from stdin and runs
    *command*; without a command it waits for one in the header. It ends when it has heard nothing for *patience*
    seconds, unless that is None. A kept one is started with no agent in it yet, and prints its id.
    """
    return [
        binary,
        "run",
        *(["--rm", "--interactive"] if config.ephemeral else ["--detach"]),
        f"--name={name}",
        *(f"--label={key}={value}" for key, value in {**config.labels, **labels}.items()),
        f"--pull={config.pull}",
        "--entrypoint=sh",
        f"--user={user if config.ephemeral else user.for_pid1}",
        *(["--userns=keep-id"] if dialect.keep_id else []),
        "--workdir=/",  # docker would make the workspace's, and a tmpfs over it then takes its mode
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        *(["--security-opt=label=disable"] if _needs_no_label(config) else []),
        "--ipc=private",
        *(["--read-only"] if config.read_only else []),
        "--log-driver=none",
        "--no-healthcheck",
        f"--network={'none' if config.network == 'gateway' else config.network}",
        f"--memory={config.memory}",
        f"--memory-swap={config.memory}",
        f"--cpu-shares={config.cpu_shares}",
        *([f"--cpus={config.cpus:g}"] if config.cpus is not None else []),
        *([f"--cpu-period={config.cpu_period}"] if config.cpu_period is not None else []),
        *([f"--cpu-quota={config.cpu_quota}"] if config.cpu_quota is not None else []),
        f"--pids-limit={config.pids_limit}",
        *(f"--ulimit={limit}" for limit in config.ulimits),
        *([f"--shm-size={config.shm_size}"] if config.shm_size is not None else []),
        *(_gpus(config.gpus, dialect) if config.gpus is not None else []),
        *(f"--device={device}" for device in config.devices),
        *(f"--add-host={entry}" for entry in config.add_host),
        *(f"--publish={_port(port)}" for port in config.published),
        *(f"--tmpfs={tmpfs_flag(tmpfs, dialect)}" for tmpfs in mounts.tmpfs),
        *carried,
        *(f"--mount={_bind(mount)}" for mount in mounts.mounts),
        *(f"--env={name}=" for name in dialect.blank),
        *([f"--env={variable}" for variable in env.spelled] if config.ephemeral else []),
        *dialect.run,
        *config.extra_args,
        "--",
        config.image,
        "-c",
        *([script.SEAL, run_id, script.GUEST] if config.ephemeral else [script.KEEPER, "sh"]),
        str(config.time_limit) if patience is None else f"{config.time_limit}:{patience}",
        *command,
    ]


def exec_argv(
    binary: str,
    *,
    name: str,
    user: User,
    env: ContainerEnv,
    run_id: str,
    time_limit: int,
    command: Iterable[str],
    place: str = paths.WORKSPACE,
) -> list[str]:
    """`docker exec`: run the agent's command in a kept container, with header, prompt and lease on stdin."""
    words = ["sh", "-c", script.JOIN, run_id, script.GUEST, str(time_limit), *command]
    return _exec(binary, name=name, user=user, variables=env.spelled, command=words, place=place)


def feed_argv(binary: str, *, name: str, user: User, run_id: str) -> list[str]:
    """`docker exec`: carry its stdin to the live agent of a run, see `script.FEED`."""
    return _ours(binary, name=name, user=user, command=("sh", "-c", script.FEED, run_id))


def gateway_argv(binary: str, *, name: str, user: User, command: Iterable[str]) -> list[str]:
    """`docker exec`: run the gateway's forwarder in a container."""
    return _ours(binary, name=name, user=user, command=command)


def _ours(binary: str, *, name: str, user: User, command: Iterable[str]) -> list[str]:
    """`docker exec` of a program of ours, as somebody whom the agent can not touch."""
    return [binary, "exec", "--interactive", f"--user={user.for_pid1}", "--workdir=/", "--", name, *command]


def remove_argv(binary: str, dialect: Dialect, *, name: str) -> list[str]:
    """`docker rm`: end and remove a container, with its anonymous volumes.

    One name a call: podman before 5.1 reports success for several and leaves some running.
    """
    return [binary, "rm", "--force", "--volumes", *dialect.remove, "--", name]


def list_argv(binary: str, labels: Mapping[str, str]) -> list[str]:
    """`docker ps`: the ids of all containers, running or not, that carry every one of *labels*.

    The value "" stands for any. Only ids are asked for: the engines' formats differ, and sizes are slow.
    """
    filters = (f"--filter=label={key}={value}" if value else f"--filter=label={key}" for key, value in labels.items())
    return [binary, "ps", "--all", "--quiet", "--no-trunc", *filters]


def inspect_argv(binary: str, names: Iterable[str]) -> list[str]:
    """`docker inspect`: a JSON list with what the engine knows of the containers that still exist."""
    return [binary, "inspect", "--type=container", "--", *names]


def events_argv(binary: str, *, name: str, event: str, since: float, until: float) -> list[str]:
    """`docker events`: a line for each such event of a container between two times, in seconds since the epoch."""
    filters = (f"--filter=container={name}", f"--filter=event={event}")
    return [binary, "events", f"--since={since:.3f}", f"--until={until:.3f}", *filters]


def shell_argv(
    binary: str,
    *,
    name: str,
    user: User,
    env: ContainerEnv,
    terminal: bool,
    command: Iterable[str],
    place: str = paths.WORKSPACE,
) -> list[str]:
    """`docker exec`: a command of a person's in a container, at their terminal if there is one."""
    flags = TERMINAL if terminal else ()
    variables = (*env.spelled, *env.named)
    return _exec(binary, *flags, name=name, user=user, variables=variables, command=command, place=place)


def screen_argv(binary: str, *, name: str, user: User, run_id: str, command: Iterable[str]) -> list[str]:
    """`docker exec`: a run's command at a person's terminal, beside the process that has the run's variables."""
    mark = f"{paths.MARK}={run_id}"
    return _exec(binary, *TERMINAL, name=name, user=user, variables=(mark,), command=command, place="/")


TERMINAL: Final = ("--tty", "--detach-keys=ctrl-@,ctrl-_")
"""What gives an exec a terminal. The default keys for leaving it, ctrl-p ctrl-q, would swallow a shell's ctrl-p."""


def _exec(
    binary: str, *flags: str, name: str, user: User, variables: Iterable[str], command: Iterable[str], place: str
) -> list[str]:
    environment = (f"--env={variable}" for variable in variables)
    where = (f"--user={user}", f"--workdir={place}")
    return [binary, "exec", "--interactive", *flags, *where, *environment, "--", name, *command]


def info_argv(binary: str) -> list[str]:
    """`docker info`: a JSON object with what the engine knows of itself and of its machine."""
    return [binary, "info", "--format={{json .}}"]


def version_argv(binary: str) -> list[str]:
    """`docker version`: a JSON object with the versions of the client, the daemon, and the daemon's parts."""
    return [binary, "version", "--format={{json .}}"]


def pull_argv(binary: str, image: str) -> list[str]:
    """`docker pull`, which tells of each layer on a line."""
    return [binary, "pull", "--", image]


def image_argv(binary: str, image: str) -> list[str]:
    """`docker image inspect`: the image's id, or a failure if it is not on this machine."""
    return [binary, "image", "inspect", "--format={{.Id}}", "--", image]


def create_argv(binary: str, dialect: Dialect, *, name: str, image: str, labels: Mapping[str, str]) -> list[str]:
    """`docker create`: a container that is never started, to read a file of its image."""
    return [
        binary,
        "create",
        f"--name={name}",
        *(f"--label={key}={value}" for key, value in labels.items()),
        "--pull=never",
        "--entrypoint=sh",  # an image without a command of its own makes no container
        "--network=none",
        *(f"--env={name}=" for name in dialect.blank),
        *dialect.run,
        "--",
        image,
    ]


def copy_argv(binary: str, *, name: str, path: str) -> list[str]:
    """`docker cp`: a file of a container, running or not, as an archive on stdout."""
    return [binary, "cp", "--", f"{name}:{path}", "-"]


def named_argv(binary: str, *, name: str, user: User) -> list[str]:
    """`docker exec`: ask whether a user has a name in a container; see `script.NAMED`."""
    return [binary, "exec", f"--user={user}", "--workdir=/", "--", name, "sh", "-c", script.NAMED, "sh", str(user.uid)]


def build_argv(
    binary: str, *, tag: str, arguments: Mapping[str, str], inherited: Iterable[str], pull: bool, cache: bool
) -> list[str]:
    """`docker build`: build an image from the Containerfile on stdin, which needs no other file.

    Args:
        arguments: the build arguments.
        inherited: the names of build arguments whose values are in the client's environment, such as https_proxy.
    """
    return [
        binary,
        "build",
        f"--tag={tag}",
        *(["--pull"] if pull else []),
        *([] if cache else ["--no-cache"]),
        *(f"--build-arg={name}={value}" for name, value in arguments.items()),
        *(f"--build-arg={name}" for name in inherited),
        "-",
    ]


def import_argv(binary: str, *, tag: str, changes: Iterable[str]) -> list[str]:
    """`docker import`: make an image of the tar archive on stdin, which holds a whole file system."""
    return [binary, "import", *(f"--change={change}" for change in changes), "-", tag]


def try_argv(binary: str, *, image: str, program: str, arguments: Iterable[str]) -> list[str]:
    """`docker run`: one call of an image's program, with nothing of the host in the container."""
    return [
        binary,
        "run",
        "--rm",
        "--pull=never",
        f"--entrypoint={program}",
        "--user=65534:65534",
        "--env=HOME=/tmp",
        "--workdir=/",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--read-only",
        *(f"--env={name}=" for name in script.PROXIES),
        f"--tmpfs={tmpfs_flag(Tmpfs('/tmp', size=TMP_SIZE, executable=True))}",  # noqa: S108  a path in the container
        "--network=none",
        "--log-driver=none",
        "--",
        image,
        *arguments,
    ]


def _needs_no_label(config: ContainerConfig) -> bool:
    # To label the workspace would change the owner's files for good, and open them to every other container.
    own = any(argument.startswith("--security-opt=label") for argument in config.extra_args)
    return selinux_enforces() and not own


def _gpus(gpus: str, dialect: Dialect) -> list[str]:
    if dialect.name == "docker":
        return [f"--gpus={csv(gpus)}"]
    # podman 4 takes --gpus and does nothing; a device that it can not give is an error.
    which = map(str, range(int(gpus))) if gpus.isdecimal() else gpus.removeprefix("device=").split(",")
    return [f"--device=nvidia.com/gpu={one}" for one in which]


def _bind(mount: Mount) -> str:
    readonly = ["readonly"] if mount.read_only else []
    return csv("type=bind", f"src={mount.source}", f"dst={mount.target}", *readonly)


def csv(*fields: str) -> str:
    """Fields as --mount reads them: CSV, in which ',' and '"' and newlines must be quoted."""
    return ",".join('"' + field.replace('"', '""') + '"' if set(field) & set(',"\n\r') else field for field in fields)


def _port(port: PortBinding) -> str:
    address = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
    return f"{address}:{port.host_port}:{port.container_port}/{port.protocol}"


def tmpfs_flag(tmpfs: Tmpfs, dialect: Dialect = DOCKER) -> str:
    """A tmpfs as --tmpfs reads it."""
    # docker mounts noexec unless told otherwise, podman exec: both are always said.
    execute = "exec" if tmpfs.executable else "noexec"
    options = ("rw", "nosuid", "nodev", execute, f"size={tmpfs.size}", f"mode={tmpfs.mode:o}", *dialect.tmpfs)
    return f"{tmpfs.target}:{','.join(options)}"
