"""Debian 13 as a folder: made once, entered by the engines of today, and the disk of the whole machine that we boot."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import attrs

from tests.integration.images import Unavailable, cached, call

RELEASE = "trixie"
"""Docker Engine 26.1 and Podman 5.4 for as long as it lives: Debian changes no version within a release."""

PACKAGES = (
    *("docker.io", "docker-cli", "podman", "runc", "crun", "netavark", "aardvark-dns", "iptables", "nftables"),
    *("passt", "slirp4netns", "uidmap", "fuse-overlayfs", "ca-certificates", "git", "python3"),
    # What makes it a machine, and what the image of the tests is made of.
    *("busybox-static", "systemd-sysv", "dbus", "dbus-user-session", "udev", "kmod"),
)

SERVICE = """\
# If a second disk is there, its /run is run when the machine is up, and then the machine is turned off.
[Unit]
ConditionPathExists=/dev/vdb
After=multi-user.target docker.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'mount --mkdir /dev/vdb /host && exec sh /host/run >/dev/ttyS0 2>&1'
ExecStopPost=systemctl poweroff
"""

ENTER = """\
set -eu
mount --make-rslave /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$1,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
cd /mnt/root
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount --rbind /tmp tmp
mount --rbind /var/tmp var/tmp
mount -t tmpfs tmpfs run
ip link set lo up
mkdir .old
pivot_root . .old
umount --lazy .old
echo entered
exec sleep infinity
"""
"""
Not chroot: with it `run` works, and every `exec` is in the wrong root. The cache stays as it is below an overlay.
Podman's locks are in /dev/shm, and the two Podmans of a machine are not to share them.
"""


def debian_root() -> Path:
    """The folder, made if the cache does not have it (a minute, 1 GB).

    Raises:
        Unavailable: it can not be made on this machine; the message says why.
    """
    return cached(f"debian-{RELEASE}-{platform.machine()}", make_debian_root)


def make_debian_root(target: Path) -> None:
    if os.geteuid() != 0:
        msg = "debootstrap needs root"
        raise Unavailable(msg)
    kernel = {"x86_64": "linux-image-cloud-amd64", "aarch64": "linux-image-cloud-arm64"}.get(platform.machine())
    packages = ",".join((*PACKAGES, *([kernel] if kernel else [])))
    # What it mounts goes with it, if it is killed.
    call("unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={packages}", RELEASE, str(target))
    for surplus in ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(target / surplus)
    units = target / "etc/systemd/system"
    (units / "host.service").write_text(SERVICE)
    (units / "multi-user.target.wants/host.service").symlink_to("../host.service")


@attrs.define
class Entered:
    """A process in that root, with mounts and a network of its own; others join it there."""

    _holder: subprocess.Popen[str]

    @classmethod
    def enter(cls) -> Entered:
        """Enter it.

        Raises:
            Unavailable: only root can, or the root can not be made, or not be entered; the message says why.
        """
        if os.geteuid() != 0:
            msg = f"only root can enter a root of Debian's {RELEASE}"
            raise Unavailable(msg)
        command = ["unshare", "--mount", "--net", "sh", "-c", ENTER, "sh", str(debian_root())]
        holder = subprocess.Popen(
            # It ends with us, however we end.
            ["setpriv", "--pdeathsig=KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "entered\n":
            told = holder.stderr.read()
            holder.wait()
            msg = f"the root of Debian's {RELEASE} can not be entered: {told}"
            raise Unavailable(msg)
        return cls(holder)

    @property
    def command(self) -> list[str]:
        """What stands before a command that is to run in there; its pid is that command's."""
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return ["nsenter", f"--target={self._holder.pid}", "--mount", "--net", "env", path, "HOME=/root"]

    def leave(self) -> None:
        """End the process; the mounts go with the last one that joined it."""
        self._holder.kill()
        self._holder.communicate()
