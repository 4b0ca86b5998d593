"""The lines to type where something is wrong, for the system that this is."""

from __future__ import annotations

import grp
import os
import platform
import pwd
import re
import shlex
import shutil
from contextlib import suppress
from pathlib import Path

from container_runner.box.environment import host_environment
from container_runner.box.sources import SHARED
from container_runner.box.user import User
from container_runner.config.container import ContainerConfig
from container_runner.engine.engine import Engine
from container_runner.engine.image import AGENTS


def give(user: User, folder: Path, engine: Engine | None) -> str:
    """The line that lets *user* write in a folder."""
    if str(folder) in SHARED:
        return f"container-runner doctor --workspace=…    # a folder of the agent's own: {folder} is everybody's"
    if engine is not None and engine.dialect.keep_id and os.geteuid() not in (0, user.uid):
        return (
            "container-runner run …    # without --user: on rootless podman the agent is you, and nobody else of yours"
        )
    quoted = shlex.quote(str(folder))
    with suppress(OSError):
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return f"{as_root(f'mount -o remount,rw {shlex.quote(_mount_point(folder))}')}    # or --workspace-mode=ro"
        if folder.stat().st_uid == user.uid:  # who may not write what is theirs is kept from it by its permissions
            command = f"chmod -R u+rwX {quoted}"
            return command if user.uid == os.geteuid() else as_root(command)
    return as_root(f"chown -R {user} {quoted}")


def _mount_point(folder: Path) -> str:
    """Where the file system of a folder begins; one that is mounted a second time only the kernel's list tells."""
    listed = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    mounts = {re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4]) for line in listed}
    return next(path for path in map(str, (folder, *folder.parents)) if path in mounts)


def restart(otherwise: str) -> str:
    """The line that ends a daemon that hangs, and starts it anew; *otherwise* where it is not this machine's."""
    if host_environment().get("DOCKER_HOST") or platform.system() == "Darwin":
        return otherwise
    if _has_systemd():
        return as_root("systemctl restart docker")
    return as_root(f"kill -KILL $(cat /var/run/docker.pid); {start_docker()}")  # it obeys nothing else


def start_docker() -> str:
    """The line that starts Docker's daemon, where there is one."""
    if _has_systemd():
        return "systemctl start docker"
    by_hand = "{ nohup dockerd >/var/log/dockerd.log 2>&1 & }"
    # A service script may fail where the daemon does not: it raises limits, which a container or a sandbox forbids.
    return f"service docker start || {by_hand}" if Path("/etc/init.d/docker").exists() else by_hand


def join_the_group(socket: Path) -> str:
    """The line that lets us speak to a socket: into its group, and if it has none of its own, a group for it before."""
    group, steps = "docker", list[str]()
    with suppress(OSError, KeyError):
        found = socket.stat()
        if found.st_gid and found.st_mode & 0o060 == 0o060:
            group = grp.getgrgid(found.st_gid).gr_name
        else:  # made before the group was, or by a daemon that knows of none; root's own group is not for joining
            path = shlex.quote(str(socket))
            steps = [f"groupadd -f {group}", f"chgrp {group} {path}", f"chmod 660 {path}"]
    joined = as_root(*steps, f"usermod -aG {group} {_our_name()}")
    return f"{joined} && newgrp {group}    # whoever is in this group is as good as root"


def _our_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "$USER"


def get_image(engine: Engine, config: ContainerConfig) -> str:
    """The line that makes or fetches the image of a configuration."""
    first, slash, _ = config.image.partition("/")
    if slash and set(first) & set(".:"):
        return f"{engine.binary} pull {config.image}"
    folder, _, agent = config.image.partition(":")[0].rpartition("/")
    agent = agent if folder == "container-runner" and agent in AGENTS else "claude"
    which = "" if agent == "claude" else f" {agent}"
    tag = "" if config.image.removesuffix(":latest") == f"container-runner/{agent}" else f" --tag={config.image}"
    return f"container-runner image build{which}{tag}{engine_flag(config.engine)}"


def engine_flag(wanted: str) -> str:
    """The flag for an engine, with a space before it; "" where it need not be said."""
    return "" if wanted == "auto" else f" --engine={shlex.quote(wanted)}"


def use_runc(engine: Engine) -> str:
    """The line that lets podman use runc, which runs where crun refuses to."""
    folder = "~/.config/containers/containers.conf.d" if engine.dialect.keep_id else "/etc/containers/containers.conf.d"
    write = rf"""printf '[engine]\nruntime = "runc"\n' >{folder}/runc.conf"""
    if engine.dialect.keep_id:
        return f"{install('runc')} && mkdir -p {folder} && {write}"
    return f"{install('runc')} && {as_root(f'mkdir -p {folder}', write)}"


def enable_limits(version: str, rootless: bool) -> str:
    """The line after which limits hold, with cgroups of this version."""
    if not rootless:
        return f"{as_root('grep . /proc/cgroups')}    # a 0 in the last column is a controller that the kernel lacks"
    if not _has_systemd():
        return "container-runner run …    # as root: without systemd only the limits of an engine of root's hold"
    if version == "1":
        argument = "systemd.unified_cgroup_hierarchy=1"
        if _family() & {"debian", "ubuntu"}:  # they have no grubby
            folder, line = "/etc/default/grub.d", f'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {argument}"'
            write = f"echo '{line}' | {as_root(f'tee {folder}/cgroup2.cfg')}"
            return f"{as_root(f'mkdir -p {folder}')} && {write} && {as_root('update-grub', 'reboot')}"
        return as_root(f"grubby --update-kernel=ALL --args={argument}", "reboot")
    folder = "/etc/systemd/system/user@.service.d"
    write = rf"printf '[Service]\nDelegate=cpu cpuset io memory pids\n' | {as_root(f'tee {folder}/delegate.conf')}"
    reload = as_root("systemctl daemon-reload")
    return f"{as_root(f'mkdir -p {folder}')} && {write} && {reload}    # and log in again"


def _has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


def other_image(wanted: str, kind: str = "claude") -> str:
    """The line that makes an image of ours with an agent, with the engine that is *wanted*, and looks at it."""
    flag = engine_flag(wanted)
    name, which = ("", "") if kind == "claude" else (f" {kind}", f" --agent-kind={kind}")
    return (
        f"container-runner image build{name}{flag} && "
        f"container-runner doctor --image=container-runner/{kind}{which}{flag}"
    )


def as_root(*commands: str) -> str:
    """The line by which a person runs these as root, who may be it already, or may have no sudo."""
    line = " && ".join(commands)
    if os.geteuid() == 0:
        return line
    if shutil.which("sudo") is None:
        return f"su - -c {shlex.quote(line)}"  # without the first dash it has no /usr/sbin
    if set("|><&") & set("".join(commands)):
        return f"sudo sh -c {shlex.quote(line)}"
    return " && ".join(f"sudo {command}" for command in commands)


def install(package: str, *, upgrade: bool = False) -> str:
    """The line that installs a package, for the system that this is."""
    if platform.system() == "Darwin":
        return f"brew {'upgrade' if upgrade else 'install'} {package}"
    family = _family()
    if family & {"debian", "ubuntu"}:
        package = {"docker": "docker.io"}.get(package, package)
        # A new machine's list of packages is empty, an old one's names files that are gone.
        return as_root("apt-get update", f"apt-get install {'--only-upgrade ' if upgrade else ''}{package}")
    if family & {"fedora", "rhel", "centos"}:
        return as_root(f"dnf {'upgrade' if upgrade else 'install'} {package}")
    if "arch" in family:
        return as_root(f"pacman -S {package}")
    if "alpine" in family:
        return as_root(f"apk add {'--upgrade ' if upgrade else ''}{package}")
    return f"# {'upgrade' if upgrade else 'install'} {package} with your system's package manager"


def _family() -> set[str]:
    """The distribution, and those that it is like."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return set()
    return {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
