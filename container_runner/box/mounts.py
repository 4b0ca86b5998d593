"""What of the host is in the container, and where."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Final

import attrs

from container_runner.agents.claude import CREDENTIALS, KEPT
from container_runner.agents.runtime import Credentials
from container_runner.box import gitconfig, protect, script
from container_runner.box.environment import host_environment
from container_runner.box.login import login_mount, read_login
from container_runner.box.sources import (
    check_sockets,
    contains,
    resolve_source,
    resolve_workspace,
    workspace_target,
)
from container_runner.box.user import User, check_workspace_access
from container_runner.config import paths
from container_runner.config.container import ContainerConfig
from container_runner.config.laws import is_line
from container_runner.config.values import Mount, Tmpfs
from container_runner.errors import ConfigError, StateError
from container_runner.folders import expanded, read_regular
from container_runner.options import Agent, split_dir
from container_runner.workspace import repositories

EMPTY: Final = "empty"
"""The folder of the state folder that is mounted over the latter, where that lies in a workspace."""

SECRETS: Final = "/run/secrets/"
"""Where files with secrets are mounted by custom, so what is in them is secret."""

MOUNTING: Final = ("--mount", "--tmpfs", "--volume", "-v")
"""How the flags begin that mount something, where they stand in `extra_args`."""

_IN_WORKSPACE: Final = re.sub(r"[^A-Za-z0-9]", "-", paths.WORKSPACE)
"""How the name of a folder holds the path /workspace."""

TMP_SIZE: Final = 512 * 1024 * 1024
"""The size of /tmp and of HOME, each. It counts towards the memory limit only when it is used."""


@attrs.frozen(kw_only=True)
class ContainerMounts:
    """The mounts of one container, with their sources resolved."""

    mounts: tuple[Mount, ...]
    """The binds, in their order: workspace, what is protected or hidden in it, sessions, credentials, volumes."""

    tmpfs: tuple[Tmpfs, ...]
    """What is writable and gone with the container: ours, then the configured ones."""

    credentials_by_name: bool
    """Whether the agent gets its credentials as variables."""

    hidden: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """The secrets in mounted files, by what is shown in their place."""

    identity: str = ""
    """What the workspace and all that is protected in it are, beside their names. When a file is replaced on the host,
    as git does with its configuration, the kernel lifts the bind of the old one, and what was protected is no more:
    a kept container must then not be used again."""

    copies: Mapping[str, bytes] = attrs.field(factory=dict, repr=False)
    """What is mounted in the place of the workspace's own files, by the paths that it is written to before a run."""

    sent: Mapping[str, str] = attrs.field(factory=dict)
    """The folders of the sessions that are sent and fetched, by their names here, with those that they have there."""

    def __iter__(self) -> Iterator[Mount]:
        """The binds."""
        return iter(self.mounts)

    def in_kernel(self, table: str) -> list[str]:
        """What the kernel is to say of these mounts in the container: "TARGET ro|rw DEVICE ROOT" for each.

        Device and root are the source's in its file system, by the lines of mountinfo and by no look at the path
        itself, which may lead elsewhere by now. With the mode "*" it is a mount of this machine's below a source,
        which may come along.

        Args:
            table: this machine's /proc/self/mountinfo; "" where there is none.
        """
        host = [_HostMount(*line.split(" ")[2:6]) for line in reversed(table.splitlines())]  # the upper ones first
        lines = [f"{escaped(tmpfs.target)} rw tmpfs /" for tmpfs in self.tmpfs]
        for mount in self.mounts:
            source, target = escaped(mount.source), escaped(mount.target)
            above = max((on for on in host if _lies_in(source, on.target)), key=lambda on: len(on.target), default=None)
            where = "- -" if above is None else above.place_of(source)
            read_only = mount.read_only or (above is not None and above.options.startswith("ro"))
            lines.append(f"{target} {'ro' if read_only else 'rw'} {where}")
            below = (on for on in host if on.target != source and _lies_in(on.target, source))
            lines += [f"{target}{on.target[len(source) :]} * {on.device} {on.root}" for on in below]
        return lines


def build_container_mounts(
    agent: Agent,
    config: ContainerConfig,
    state_dir: str | os.PathLike[str],
    *,
    user: User | None = None,
    credentials: Credentials = CREDENTIALS,
    kept: Sequence[str] | None = KEPT,
    more: Mapping[str, Mount] = MappingProxyType({}),
    environ: Iterable[str] | None = None,
    elsewhere: bool = False,
) -> ContainerMounts:
    """The mounts for *agent*: its workspace, its sessions folder, its credentials file, the configured volumes.

    In a writable workspace what the host acts on later is read-only (see `container_runner.box.protect`), and a git
    worktree comes with its repository. One that is carried is not mounted from the host, and needs none of this: see
    `container_runner.box.carried`.

    Nothing is created: see `prepare_sessions`.

    Args:
        state_dir: where the sessions folders are, one for each agent and never shared.
        user: who the agent is in the container. None: whom the configuration and the workspace make it.
        credentials: what the runtime can use; `config.credentials` says which of it is given. Default: claude's.
        kept: see `Command.kept`. Default: claude's.
        more: see `Command.mounts`.
        environ: the names of the variables that are set on the host, and not to nothing. None: this process's.
        elsewhere: whether the engine does not see this machine's files. Then nothing is mounted; see
            `container_runner.box.elsewhere`.

    Raises:
        ConfigError: a source is missing, or is one of the places that are never mounted.
    """
    mounts: list[Mount] = []
    copies: dict[str, bytes] = {}
    state = expanded(state_dir, "state_dir").resolve()
    if user is None:
        user = User.of(config, None if agent.workspace is None else resolve_workspace(agent))
    if environ is None:
        environ = [name for name, value in host_environment().items() if value]
    if not is_line(str(state)):
        raise ConfigError("state_dir", str(state), "a path without control characters")
    workspace = None if agent.workspace is None else resolve_workspace(agent)
    target = workspace_target(config, workspace)
    if workspace is not None and contains(state, workspace):
        allowed = f"a folder that is not inside our state folder {state}"
        raise ConfigError("agent.workspace", str(agent.workspace), allowed)
    if workspace is not None and config.workspace_mode != "carried":
        check_workspace_access(user, workspace, config)
        check_sockets(workspace, "agent.workspace")
        mounts.append(Mount(str(workspace), target, config.workspace_mode == "ro"))
        try:
            if config.workspace_mode == "rw":
                walls = protect.protect(workspace, config.unprotected, config.protected, target=target)
                mounts += (_copied(mount, copies, state) for mount in walls)
            mounts += _worktree(workspace, target, config, state)
            _check_objects(workspace, mounts, config)
        except OSError as error:
            allowed = f"a workspace in which we may look at {error.filename} ({error.strerror}); chmod u+rwx gives that"
            raise ConfigError("agent.workspace", str(workspace), allowed) from None
        if contains(workspace, state):
            # Other agents' sessions and our locks are none of its business. (A tmpfs would hide them too, but podman
            # copies into one what lies below, also where docker's client is what asks for it.)
            mask = Mount(str(state / EMPTY), f"{target}/{state.relative_to(workspace)}", read_only=True)
            is_open = config.workspace_mode == "rw"
            mounts += [*(protect.way_to(state, workspace, beside=mounts, target=target) if is_open else []), mask]
    mounts += _more_folders(agent, workspace, user, config, state)
    identity = " ".join(map(_inode, mounts))
    sessions = Mount(str(sessions_folder(state, agent.name)), paths.SESSIONS)
    in_memory: list[str] = []
    sent: dict[str, str] = {}
    if elsewhere:
        in_memory, sent = [sessions.target], {name: _by_place(name, target) for name in kept or (".",)}
    elif kept is None:
        mounts.append(sessions)
    else:
        places = {name: f"{sessions.target}/{_by_place(name, target)}" for name in kept}
        mounts += (Mount(f"{sessions.source}/{name}", place) for name, place in places.items())
        # An engine would make what lies between as root's, and the agent could make nothing beside it.
        between = {way for place in places.values() for way in PurePosixPath(place).parents}
        in_memory = sorted(str(way) for way in between if way.is_relative_to(sessions.target))
    by_name = config.credentials in ("auto", "env") and any(name in environ for name in credentials.names)
    hidden: dict[str, str] = {}
    if not by_name and (file := login_mount(config, credentials, user)) is not None:
        if elsewhere:
            names = " or ".join(credentials.names)
            raise no_file_there("credentials", "file", f'"env" with {names} set, "inject" or "none"')
        mounts.append(file)
        hidden = read_login(Path(file.source))
    for field, volume in [*more.items(), *((f"volumes[{index}]", it) for index, it in enumerate(config.volumes))]:
        if elsewhere:
            raise no_file_there(field, volume.source, "nothing")
        source = resolve_source(volume.source, field)
        if contains(state, source) or contains(source, state):
            raise ConfigError(field, volume.source, f"a path apart from our state folder {state}")
        check_sockets(source, field)
        if field in more and not user.can_read(source):
            allowed = f"a path that the agent's user {user} can read"
            raise ConfigError(field, volume.source, allowed)
        mounts.append(attrs.evolve(volume, source=str(source)))
        if volume.target.startswith(SECRETS):
            hidden |= read_login(source)
    return ContainerMounts(
        mounts=tuple(mounts),
        tmpfs=(
            *_own_tmpfs([*in_memory, *([paths.WORKSPACE] if agent.workspace is None else [])]),
            *config.tmpfs,
        ),
        credentials_by_name=by_name,
        hidden=hidden,
        identity=identity,
        copies=copies,
        sent=sent,
    )


def no_file_there(field: str, value: object, allowed: str) -> ConfigError:
    """The error for what an engine that does not see this machine's files can not give an agent."""
    return ConfigError(field, value, f"{allowed} with this engine, which does not see this machine's files")


def _own_tmpfs(more: Iterable[str]) -> list[Tmpfs]:
    """The writable folders that every agent needs. They are executable because the workspace is, too."""
    return [
        Tmpfs("/tmp", size=TMP_SIZE, executable=True),  # noqa: S108  a path in the container
        Tmpfs(paths.HOME, size=TMP_SIZE, executable=True),
        # The copy of the shell that our script runs in is executed there.
        Tmpfs(paths.RUN_DIR, size=script.PROMPT_LIMIT + 4 * 1024 * 1024, executable=True),
        *(Tmpfs(target, size=TMP_SIZE, executable=True) for target in more),
    ]


@attrs.frozen
class _HostMount:
    """A line of this machine's mountinfo."""

    device: str
    root: str
    target: str
    options: str

    def place_of(self, path: str) -> str:
        """Device and root of a path that lies in it."""
        rest = path[len(self.target.rstrip("/")) :].rstrip("/")
        return f"{self.device} {self.root.rstrip('/')}{rest}" if rest else f"{self.device} {self.root}"


def mount_table() -> tuple[str, str]:
    """This machine's /proc/self/mountinfo and its kernel's boot id; "" for both where there is no /proc."""
    try:
        table = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
        return table, Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux: the engine is on another kernel, whose devices have other numbers
        return "", ""


def escaped(path: str) -> str:
    """A path as mountinfo spells it."""
    return re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match[0]):03o}", path)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def sessions_folder(state: Path, agent: str) -> Path:
    """Where *agent*'s sessions are kept on the host."""
    return state / "sessions" / agent


def prepare_sessions(state: Path, agent: str, user: User, kept: Iterable[str] = ()) -> bool:
    """Make the agent's sessions folder, private to *user*, and tell whether something of it was not there.

    Args:
        kept: the folders in it, see `Command.kept`.

    Raises:
        ConfigError: something that is no folder of ours stands in its place, such as a symlink elsewhere.
        StateError: it can not be made, or *user* can not write it.
    """
    folder, is_new = sessions_folder(state, agent), False
    try:
        state.mkdir(mode=0o755, parents=True, exist_ok=True)
        own = [path for name in kept for path in (*reversed((folder / name).parents), folder / name)]
        own = [path for path in dict.fromkeys(own) if folder in path.parents]
        ours = {state / EMPTY: 0o555, folder.parent: 0o755}
        for path, mode in (*ours.items(), (folder, 0o700), *((path, 0o700) for path in own)):
            try:
                path.mkdir(mode=mode)
            except FileExistsError:
                if not stat.S_ISDIR(path.lstat().st_mode):
                    raise ConfigError("state_dir", str(path), "a folder; a symlink could lead anywhere") from None
            else:
                is_new = True
            # Also of one that was there: a start may have been killed between the two calls.
            if path not in ours and os.getuid() == 0 and path.lstat().st_uid == 0:
                os.chown(path, user.uid, user.gid, follow_symlinks=False)
            if path not in ours and not user.can_write(path):
                step = f"Type: chown -R {user} {shlex.quote(str(folder))}, or choose another --agent"
                raise StateError(f"The agent's user {user} can not write its sessions in {path}.", next_step=step)
    except OSError as error:
        raise StateError(f"The sessions folder {folder} can not be made: {error.strerror}.") from None
    return is_new


def recheck(mounts: Iterable[Mount]) -> bool:
    """Make sure, just before the run, that no source has become a symlink since it was resolved.

    What a repository may always have is made where it is missing, so that there is something to protect.

    Returns:
        Whether something was made.

    Raises:
        ConfigError: one has; an agent that ran before may have swapped a folder for a link.
        StateError: that can not be made.
    """
    mounts = tuple(mounts)
    for mount in mounts:
        if os.path.realpath(mount.source) != mount.source:
            raise ConfigError("mounts", mount.source, "a path that stays what it is; it has just become a symlink")
    try:
        return protect.make_reserved(mounts)
    except OSError as error:
        raise StateError(f"{error.filename} can not be made: {error.strerror}.") from None


def _inode(mount: Mount) -> str:
    try:
        found = os.stat(mount.source)  # noqa: PTH116  a string
    except OSError:  # a folder that is made before the run
        return "none"
    # The number of a file that was replaced is given to the next one, so its last change tells them apart. What the
    # agent may write changes all the time, and is only there to keep its parts in their place.
    return f"{found.st_dev}:{found.st_ino}:{found.st_ctime_ns if mount.read_only else ''}"


def _by_place(name: str, target: str) -> str:
    """A folder that is kept, by its name in the container: agents call some by the path that they were started in."""
    return name.replace(_IN_WORKSPACE, re.sub(r"[^A-Za-z0-9]", "-", target))


def _more_folders(
    agent: Agent, workspace: Path | None, user: User, config: ContainerConfig, state: Path
) -> Iterator[Mount]:
    """The folders of `Agent.add_dirs`, each where it is on this machine, and as protected as the workspace."""
    for index, word in enumerate(agent.add_dirs):
        (path, is_writable), field = split_dir(word), f"agent.add_dirs[{index}]"
        folder = resolve_source(path, field)
        if workspace is not None and contains(workspace, folder):
            continue
        if not folder.is_dir():
            raise ConfigError(field, path, "a folder")
        apart = [state] if workspace is None else [state, workspace]
        if contains(state, folder) or any(contains(folder, other) for other in apart):
            allowed = f"a folder apart from the workspace and from our state folder {state}"
            raise ConfigError(field, path, allowed)
        if str(folder) in {"/tmp", *(it.target for it in config.volumes), *(it.target for it in config.tmpfs)}:  # noqa: S108  in there
            raise ConfigError(field, path, "a path at which nothing else is mounted")
        if is_writable and not user.can_write(folder):
            raise ConfigError(field, path, f"a folder that the agent's user {user} can write, or one without :rw")
        check_sockets(folder, field)
        yield Mount(str(folder), str(folder), not is_writable)
        if is_writable:
            yield from protect.protect(folder, config.unprotected, config.protected, target=str(folder))


def _worktree(workspace: Path, target: str, config: ContainerConfig, state: Path) -> list[Mount]:
    """What git needs in a workspace that is a worktree, unless a configured volume provides it."""
    worktree = repositories.find_worktree(workspace, target)
    if worktree is None or worktree.target in {volume.target for volume in config.volumes}:
        return []
    for index, tmpfs in enumerate(config.tmpfs):
        if f"{tmpfs.target}/".startswith(f"{worktree.target}/"):  # its mount point would be made in the repository
            allowed = f"a path that is not in the worktree's repository, {worktree.target}"
            raise ConfigError(f"tmpfs[{index}]", tmpfs.target, allowed)
    common = resolve_source(worktree.common, "agent.workspace")
    if contains(state, common) or contains(common, state):
        allowed = f"a worktree whose repository {common} is apart from our state folder {state}"
        raise ConfigError("agent.workspace", str(workspace), allowed)
    return protect.worktree_mounts(
        worktree,
        workspace,
        config.unprotected,
        config.protected,
        read_only=config.workspace_mode == "ro",
        target=target,
    )


def _copied(mount: Mount, copies: dict[str, bytes], state: Path) -> Mount:
    """The mount of a submodule's configuration, as a copy with which git can update the submodule; or *mount*."""
    path = Path(mount.source)
    if path.name != "config" or "modules" not in path.parts or not repositories.is_repository(path.parent):
        return mount
    try:
        text = read_regular(path).decode("utf-8", "surrogateescape")
    except OSError:
        return mount
    if (less := gitconfig.for_submodule(text)) == text:
        return mount
    content = less.encode("utf-8", "surrogateescape")
    copy = str(state / "submodules" / hashlib.sha256(content).hexdigest()[:32])
    copies[copy] = content
    return attrs.evolve(mount, source=copy)


def prepare_copies(copies: Mapping[str, bytes]) -> bool:
    """Write the copies that are not there yet, each at once as a whole, and tell whether there was any.

    Raises:
        StateError: one can not be written.
    """
    missing = {path: content for path, content in copies.items() if not os.path.lexists(path)}
    try:
        for path, content in missing.items():
            Path(path).parent.mkdir(mode=0o755, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=Path(path).parent, delete=False) as file:
                file.write(content)
                os.fchmod(file.fileno(), 0o644)
            Path(file.name).replace(path)
    except OSError as error:
        raise StateError(f"A copy of a submodule's configuration can not be written: {error.strerror}.") from None
    return bool(missing)


def _check_objects(workspace: Path, mounts: Iterable[Mount], config: ContainerConfig) -> None:
    """Refuse a repository that borrows objects from where the container has none: git could do nothing in there. They
    are not mounted unasked, because the agent could have written the name of any folder there."""
    own = repositories.git_folder(workspace)
    there = [*(mount.target for mount in (*config.volumes, *mounts))]
    found = [] if own is None else [own, *repositories.modules(repositories.common_folder(own) or own)]
    for git, objects in ((at, it) for at in found for it in repositories.objects_elsewhere(at, workspace)):
        if not any(contains(Path(target), objects) for target in there):
            allowed = (
                f"a repository that has all its objects; {git} borrows those in {objects}. Type "
                f"`git repack -a -d && rm objects/info/alternates` in it, or let the agent read them with "
                f"--volume={objects}:{objects}:ro"
            )
            raise ConfigError("agent.workspace", str(workspace), allowed)
