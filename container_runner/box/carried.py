"""How a workspace is carried, and the engine's command lines for it. Nothing of it is mounted from the host to write.

Nobody in such a box can write to the user's folder, so it needs no read-only binds, and no place in it can be swapped
for another while a run starts. What PID 1 can prove of an overlay is that its layers were mounted by the names that
were planned; of a volume, that it is the one with that name.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import attrs

from container_runner.box.argv import LABEL, Dialect, csv, tmpfs_flag
from container_runner.box.mounts import TMP_SIZE, escaped, mount_table
from container_runner.box.sources import contains, resolve_source, workspace_target
from container_runner.box.user import User
from container_runner.config.container import ContainerConfig
from container_runner.config.values import Tmpfs
from container_runner.errors import ConfigError
from container_runner.workspace import repositories
from container_runner.workspace.carry import LAYERS, Carry, Layer
from container_runner.workspace.patch import PATCH
from container_runner.workspace.upper import marks_of
from container_runner.workspace.way_in import IN
from container_runner.workspace.way_out import COMMITS_ALONE, OUT

OPEN: Final = 'chmod 1777 "$1"'
"""Lets every user write to a folder: `sh -c OPEN sh FOLDER`, by its owner."""

HELD: Final = """\
trap 'exit 143' TERM
exec 3<&0
sh -c "$@" <&3 3<&- &
wait "$!"
"""
"""Runs a script of ours as PID 1 of a container: `sh -c HELD sh SCRIPT sh FOLDER`. The kernel keeps a TERM from a PID 1
without a trap, and a shell that waits for a program of its own hears it too late."""

HELPER_MEMORY: Final = 1024**3
"""The most bytes of memory of a container that only fetches."""

WORK_LABEL: Final = f"{LABEL}work"
"""The id of the run whose work a volume holds."""

NONCE_LABEL: Final = f"{LABEL}nonce"
"""By which a volume is told from one that an engine has made by itself, because there was none of that name."""

_SPECIAL: Final = re.compile(r"[:,\\]")
_ESCAPED: Final = r"\\\g<0>"


def plan_carry(
    config: ContainerConfig,
    dialect: Dialect,
    *,
    run: str,
    agent: str,
    workspace: Path,
    state_dir: Path,
    user: User,
    engine: str,
    container: str,
    overlay: bool = True,
) -> Carry:
    """How *workspace* is carried in a run: by an overlay, unless that can not be or is not wanted.

    Args:
        workspace: its real path.
        overlay: whether the engine may be able to do it.

    Raises:
        ConfigError: an overlay is wanted, and can not be; or our state folder is in the workspace.
    """
    state = state_dir.resolve()
    if contains(workspace, state):
        allowed = "a folder outside of a carried workspace, such as --state-dir=~/.local/state/container-runner"
        raise ConfigError("state_dir", str(state_dir), allowed)
    target = workspace_target(config, workspace)
    for other in (*(it.target for it in config.volumes), *(it.target for it in config.tmpfs)):
        if contains(Path(target), Path(other)):
            raise ConfigError("agent.workspace", target, f"a folder in which nothing else is mounted; {other} is")
    layers = tuple(_layers(workspace, target, state, run))
    reason = _no_overlay(layers, dialect, user, workspace)
    if config.carry == "overlay" and reason:
        raise ConfigError("carry", "overlay", f'"stream", because {reason}')
    carry = Carry(
        run=run,
        agent=agent,
        workspace=str(workspace),
        target=target,
        how="overlay",
        layers=layers,
        engine=engine,
        image=config.image,
        container=container,
        user=str(user),
        history=config.history,
        ignored=config.carry_ignored,
        lent=tuple(it.target for it in config.volumes if str(resolve_source(it.source, "volumes")) == it.target),
        protected=config.protected,
        unprotected=config.unprotected,
        is_forced=config.carry != "auto",
    )
    if config.carry == "overlay" or (config.carry == "auto" and overlay and not reason):
        return carry
    return attrs.evolve(carry, how="stream", layers=(), volume=f"container-runner-{run}", nonce=secrets.token_hex(16))


def _layers(workspace: Path, target: str, state: Path, run: str) -> Iterable[Layer]:
    """The workspace, and the repository of a worktree, which lies elsewhere."""
    folder = f"{state}/{LAYERS}/{run}"
    yield Layer(lower=str(workspace), target=target, folder=f"{folder}/0")
    if (worktree := repositories.find_worktree(workspace, target)) is not None:
        common = resolve_source(worktree.common, "agent.workspace")
        yield Layer(lower=str(common), target=worktree.target, folder=f"{folder}/1")


def _no_overlay(layers: Iterable[Layer], dialect: Dialect, user: User, workspace: Path) -> str | None:
    """Why there can be no overlay; None if nothing speaks against it."""
    for path in (path for layer in layers for path in (layer.lower, layer.folder, layer.target)):
        if bad := set(path) & set(dialect.not_in_overlay):
            return f"{dialect.name} takes no overlay of {path!r} with a {min(bad)!r} in it"
    if not mount_table()[1]:
        return "the engine's kernel is not this machine's"
    if os.getuid() not in (0, user.uid):
        return f"what the agent's user {user} writes could not be removed by you"
    if not user.can_write(workspace):
        return f"the agent's user {user} can not write {workspace}"
    git = repositories.git_folder(workspace)
    if git is not None and (elsewhere := repositories.objects_elsewhere(git, workspace)):
        return f"its repository borrows the objects in {elsewhere[0]}"
    return None


def in_kernel(carry: Carry, dialect: Dialect) -> list[str]:
    """What the kernel is to say in the container: "TARGET rw overlay OPTIONS" for each layer, or "... volume NAME"."""
    if carry.volume:
        return [f"{escaped(carry.target)} rw volume {carry.volume}"]
    return [f"{escaped(layer.target)} rw overlay {_as_shown(layer, dialect)}" for layer in carry.layers]


def _as_shown(layer: Layer, dialect: Dialect) -> str:
    options = _options(layer, escape=dialect.name == "docker")
    return ",".join(f"{name}={escaped(path).replace(',', chr(92) + '054')}" for name, path in options)


def _options(layer: Layer, *, escape: bool) -> list[tuple[str, str]]:
    """The options of an overlay's mount. The kernel takes ':' for the end of a path, and ',' for that of an option."""
    places = (("lowerdir", layer.lower), ("upperdir", layer.upper), ("workdir", layer.work))
    return [(name, _SPECIAL.sub(_ESCAPED, path) if escape else path) for name, path in places]


def carried_flags(carry: Carry, dialect: Dialect, *, makes: bool = False) -> list[str]:
    """The flags of `run` that put a carried workspace in its place.

    Args:
        makes: whether docker is to make the volume, with the labels by which it is known; podman knows no flag for it.
    """
    if carry.volume:
        # 'nocopy': what an image has at that place would look like work.
        if dialect.name == "docker":
            labels = [f"volume-label={label}" for label in _labels(carry)] if makes else []
            where = (f"src={carry.volume}", f"dst={carry.target}")
            return [f"--mount={csv('type=volume', *where, 'volume-nocopy', *labels)}"]
        return [f"--volume={carry.volume}:{carry.target}:nocopy"]
    if dialect.name == "docker":
        return [f"--mount={_overlay(layer)}" for layer in carry.layers]
    return [f"--volume={it.lower}:{it.target}:O,upperdir={it.upper},workdir={it.work}" for it in carry.layers]


def _labels(carry: Carry) -> tuple[str, ...]:
    """The labels of its volume."""
    return f"{WORK_LABEL}={carry.run}", f"{NONCE_LABEL}={carry.nonce}"


def _overlay(layer: Layer) -> str:
    """An overlay as docker's local driver mounts it: a volume without a name, which goes with its container."""
    return csv(
        "type=volume",
        f"dst={layer.target}",
        "volume-driver=local",
        "volume-opt=type=overlay",
        "volume-opt=device=overlay",
        f"volume-opt=o={','.join(f'{name}={path}' for name, path in _options(layer, escape=True))}",
    )


def work_exec_argv(binary: str, *, name: str, user: str, script: str, arguments: Iterable[str]) -> tuple[str, ...]:
    """`docker exec`: one of our scripts in a running container, with stdin."""
    where = (binary, "exec", "--interactive", f"--user={user}", "--workdir=/", "--", name)
    return (*where, "sh", "-c", script, "sh", *arguments)


def helper_argv(
    binary: str,
    dialect: Dialect,
    *,
    name: str,
    image: str,
    user: str,
    labels: Mapping[str, str],
    carry: Carry,
    script: str,
    arguments: Iterable[str],
) -> list[str]:
    """`docker run`: one of our scripts on a carried workspace whose own container is gone, with stdin."""
    return [
        binary,
        "run",
        "--rm",
        "--interactive",
        f"--name={name}",
        *(f"--label={key}={value}" for key, value in labels.items()),
        "--pull=never",
        "--entrypoint=sh",
        f"--user={user}",
        *(["--userns=keep-id"] if dialect.keep_id else []),
        "--workdir=/",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--read-only",
        f"--tmpfs={tmpfs_flag(Tmpfs('/tmp', size=TMP_SIZE), dialect)}",  # noqa: S108  a path in the container
        "--network=none",
        f"--memory={HELPER_MEMORY}",
        "--pids-limit=256",
        "--log-driver=none",
        "--no-healthcheck",
        *carried_flags(carry, dialect),
        *(f"--env={name}=" for name in dialect.blank),
        *dialect.run,
        "--",
        image,
        "-c",
        HELD,
        "sh",
        script,
        "sh",
        *arguments,
    ]


@attrs.frozen(kw_only=True)
class Ways:
    """The commands that carry one workspace in and out, beside that of its container. What is not needed is empty."""

    make: tuple[str, ...] = ()
    """Make the volume, before there is a container; docker makes it with that."""

    open: tuple[str, ...] = ()
    """Let the agent write to it: docker's are root's."""

    bring: tuple[str, ...] = ()
    """Bring the files in, before the agent starts; or what differs from those below an overlay."""

    fetch: tuple[str, ...] = ()
    """Fetch the work, when it has ended."""

    commits: tuple[str, ...] = ()
    """Fetch what was committed alone, if something may have been: the rest is read here, in the upper folder."""

    remove: tuple[str, ...] = ()
    """Remove the volume, when its work is fetched."""

    @classmethod
    def of(cls, carry: Carry, binary: str, dialect: Dialect) -> Ways:
        """The commands for *carry*."""
        exec_ = partial(work_exec_argv, binary, name=carry.container, arguments=[carry.target])
        fetch = exec_(user=carry.user, script=OUT)
        is_read_here = bool(carry.layers) and marks_of(is_rootless=dialect.keep_id) is not None
        labels = [f"--label={label}" for label in _labels(carry)]
        is_docker = dialect.name == "docker"
        return cls(
            make=(binary, "volume", "create", *labels, carry.volume) if carry.volume and not is_docker else (),
            open=exec_(user="0:0", script=OPEN) if carry.volume and is_docker else (),
            bring=exec_(user=carry.user, script=IN if carry.volume else PATCH) if carry.volume or carry.start else (),
            fetch=fetch,
            commits=(*fetch, COMMITS_ALONE) if is_read_here else (),
            remove=(binary, "volume", "rm", carry.volume) if carry.volume else (),
        )

    def around(self, run: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """All of them in their order, with that of the container."""
        return tuple(filter(None, (self.make, run, self.open, self.bring, self.commits or self.fetch, self.remove)))


def inspect_volume_argv(binary: str, *, name: str) -> list[str]:
    """`docker volume inspect`: a JSON list with what the engine knows of a volume, or a failure if there is none."""
    return [binary, "volume", "inspect", name]
