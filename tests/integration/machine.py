"""A whole machine of today: Debian 13 with systemd, cgroup v2 and crun, in qemu, and tests of ours that run in it.

The processor is emulated. That takes ten times as long and works everywhere: /dev/kvm is not asked for. The machine
has no network. It boots from a disk made of the folder of `debian.py`, gets this repository and its dependencies on a
second one, and tells how each test went on a serial port of its own; `tests.integration.serial` is at the other end.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from tests.integration.debian import debian_root
from tests.integration.images import Unavailable, cached, call

ROOT = Path(__file__).parent.parent.parent

PYTHON = "3.13"
"""Debian 13's."""

PLACES = ("docker", "podman", "podman-rootless")
"""The engines there; root has the first two, and an ordinary user the last."""

SECONDS = 2400
"""For all of it. Beside other tests on two cores it takes a quarter to a half."""

SCRIPT = """\
# The machine is up. As root, with nobody to answer a question.
exec </dev/null
cd /host/repository
printf '#!/bin/sh\nexec python3 -m container_runner "$@"\n' >/usr/bin/container-runner
chmod 755 /usr/bin/container-runner
chmod 666 /dev/ttyS1
# Rootless Podman wants a way out, though it leads nowhere here.
printf '[NetDev]\nName=lan\nKind=dummy\n' >/etc/systemd/network/lan.netdev
printf '[Match]\nName=lan\n[Network]\nAddress=192.0.2.2/24\nGateway=192.0.2.1\n' >/etc/systemd/network/lan.network
systemctl start systemd-networkd
useradd --create-home --shell /bin/sh -K UID_MIN=2000 tester
loginctl enable-linger tester
export PYTHONPATH=/host/site:/host/repository LANG=C.UTF-8
{root}
until [ -S /run/user/2000/bus ]; do sleep 1; done
# A scope of the user's slice is what a login is.
systemd-run --scope --quiet --slice=user-2000.slice --uid=2000 --gid=2000 \\
  env HOME=/home/tester XDG_RUNTIME_DIR=/run/user/2000 {user}
"""

INI = """\
[pytest]
anyio_mode = auto
markers =
    on: the engines
    engine: needs an engine
    claude: not here
    faults: not here
    timeout: nothing here stops a test
"""


@attrs.frozen
class Outcome:
    """How a test went in the machine."""

    outcome: str
    """passed, failed or skipped."""

    told: str
    """Why, if it did not pass."""


@attrs.frozen
class Machine:
    """The machine after it has run."""

    outcomes: Mapping[tuple[str, str], Sequence[Outcome]]
    """By engine and by the test's name without its parameters."""

    console: str
    """What it printed."""


def run_machine(tests: Mapping[str, Sequence[str]]) -> Machine:
    """Boot the machine and run these tests in it.

    Args:
        tests: Names such as `tests/integration/test_runs.py::test_one`, by the engine that they run on.

    Raises:
        Unavailable: it can not be had on this machine; the message says why.
    """
    if platform.machine() != "x86_64":
        msg = f"the whole machine is an x86-64 one, and Debian for it is not made on {platform.machine()}"
        raise Unavailable(msg)
    for program in ("qemu-system-x86_64", "mke2fs"):
        if shutil.which(program) is None:
            msg = f"{program} is not installed: on Debian, apt-get install qemu-system-x86 e2fsprogs"
            raise Unavailable(msg)
    root, site = debian_root(), python_packages()
    with tempfile.TemporaryDirectory(prefix="cr-machine-", dir="/var/tmp") as name:
        folder = Path(name)
        disk(folder / "root.disk", root, size="6G")
        disk(folder / "host.disk", host_folder(folder / "host", site, tests), size="1G")
        boot(folder, root / "boot")
        return read(folder)


def python_packages() -> Path:
    """What our tests import, for the machine's Python, made if the cache does not have it.

    Raises:
        Unavailable: it can not be fetched.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["testing"]]
    wanted += [need for need in project["dependency-groups"]["dev"] if str(need).startswith(("pytest-rerun", "trio"))]
    digest = hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:12]

    def fetch(target: Path) -> None:
        flags = ["--only-binary=:all:", f"--python-version={PYTHON}", f"--target={target}", "--no-compile"]
        platforms = [f"--platform=manylinux{abi}_x86_64" for abi in ("2014", "_2_17", "_2_28")]
        call(sys.executable, "-m", "pip", "install", "--quiet", *flags, *platforms, *wanted)
        compile_modules(target, "/host/site")

    return cached(f"python-{PYTHON}-{platform.machine()}-{digest}", fetch)


def compile_modules(folder: Path, there: str) -> None:
    """Compile the modules of the folder that is `there` in the machine, which would take minutes for it."""
    compiling = 'mount --bind "$1" "$2/mnt" && exec chroot "$2" python3 -m compileall -q -s /mnt -p "$3" /mnt'
    call("unshare", "--mount", "sh", "-c", compiling, "sh", str(folder), str(debian_root()), there)


def host_folder(folder: Path, site: Path, tests: Mapping[str, Sequence[str]]) -> Path:
    """The folder that the machine sees as /host."""
    shutil.copytree(site, folder / "site")
    for part in ("container_runner", "tests"):
        shutil.copytree(ROOT / part, folder / "repository" / part, ignore=shutil.ignore_patterns("__pycache__"))
    compile_modules(folder / "repository", "/host/repository")
    (folder / "pytest.ini").write_text(INI)
    pytest = [
        "python3",
        "-m",
        "pytest",
        "-c",
        "/host/pytest.ini",
        "--rootdir=/host/repository",
        "-p",
        "no:cacheprovider",
    ]
    pytest += ["-p", "tests.integration.serial", "--color=no", "-vv", "--reruns=1"]
    by_root, by_user = (
        [*pytest, *(f"{test}[{place}]" for place in places for test in tests[place])]
        for places in (["docker", "podman"], ["podman-rootless"])
    )
    (folder / "run").write_text(SCRIPT.format(root=shlex.join(by_root), user=shlex.join(by_user)))
    return folder


def disk(path: Path, folder: Path, *, size: str) -> None:
    """Make a file that is a disk with the folder's files."""
    call("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(folder), str(path), size)


def boot(folder: Path, kernels: Path) -> None:
    """Run the machine until it turns itself off."""
    (kernel,), (initrd,) = kernels.glob("vmlinuz-*"), kernels.glob("initrd.img-*")
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "2", "-m", "3072"]
    command += ["-nic", "none", "-display", "none", "-no-reboot", "-kernel", str(kernel), "-initrd", str(initrd)]
    command += ["-append", "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=error mitigations=off"]
    command += [word for port in ("console", "results") for word in ("-serial", f"file:{folder}/{port}")]
    for name in ("root", "host"):
        command += ["-drive", f"file={folder}/{name}.disk,format=raw,if=virtio,cache=unsafe"]
    # It ends with us, however we end. It has twice the processor of others: what runs in it has clocks, and is slow.
    first = ["setpriv", "--pdeathsig=KILL", "nice", "-n", "-3"]
    with subprocess.Popen([*first, *command], stdin=subprocess.DEVNULL) as qemu:
        try:
            qemu.wait(SECONDS)
        except subprocess.TimeoutExpired:
            pass  # what it said until then counts
        finally:
            qemu.kill()


def read(folder: Path) -> Machine:
    """What the machine has said."""
    outcomes: dict[tuple[str, str], list[Outcome]] = {}
    *lines, _cut = (folder / "results").read_text(errors="replace").split("\n")
    for line in lines:
        said = json.loads(line)
        outcomes.setdefault((said["engine"], said["test"]), []).append(Outcome(said["outcome"], said["told"]))
    return Machine(outcomes, (folder / "console").read_text(errors="replace"))
