"""An image with a scripted agent, made of files of this machine: neither a registry nor an account is needed.

The agent does what each line of its prompt says, in order, and tells about it in claude's stream-json; its words are
listed in `scripted-agent`, beside this file. `container-runner demo` shows it, and tests with a real engine use it.
"""

from __future__ import annotations

import contextlib
import io
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from container_runner.box import argv
from container_runner.errors import ImageUnsuitableError

IMAGE: Final = "container-runner/demo"

AGENT: Final = Path(__file__).with_name("scripted-agent")

PATH: Final = "/usr/local/bin:/usr/bin:/bin"

TOOLS: Final = (
    "sh awk cat chmod cp cut date dd env false grep head id kill ln ls mkdir mkfifo mv ps rm sed seq setsid sleep sort "
    "stat tail tee timeout touch tr true uname wc yes"
)
"""Where there is no busybox, these programs of the machine are taken."""

PASSWD: Final = """\
root:x:0:0:root:/root:/bin/sh
agent:x:1000:1000:agent:/home/agent:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/sh
"""  # noqa: S105  the file of that name
GROUP: Final = "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n"


def import_scripted(engine: str, *, environ: Mapping[str, str] | None = None, image: str = IMAGE) -> None:
    """Make the image: about 2 MB with a busybox of this machine, and some 10 MB without.

    Args:
        engine: the engine's client.
        environ: the variables that it gets. None: those of this process.

    Raises:
        ImageUnsuitableError: this machine is no Linux, or the engine did not take it.
    """
    if platform.system() != "Linux":
        message = "The image is made of this machine's programs, and only those of Linux run in a container."
        raise ImageUnsuitableError(message, next_step="Make one with an agent in it: container-runner image build")
    import_image(engine, image, add_scripted, environ=environ)


def import_image(
    engine: str, image: str, add: Callable[[tarfile.TarFile], None], *, environ: Mapping[str, str] | None = None
) -> None:
    """Make an image of the files that `add` adds to an archive.

    Raises:
        ImageUnsuitableError: the engine did not take it; `stderr` holds what it said.
    """
    command = argv.import_argv(engine, tag=image, changes=[f"ENV PATH={PATH}"])
    client = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environ
    )
    with client:
        assert client.stdin is not None  # noqa: S101  pipes
        assert client.stderr is not None  # noqa: S101  pipes
        # A client that fails ends early: the reason is what it says then, not our broken pipe.
        with (
            contextlib.suppress(BrokenPipeError),
            client.stdin as pipe,
            tarfile.open(fileobj=pipe, mode="w|") as archive,
        ):
            add(archive)
        told = client.stderr.read().decode(errors="replace")
    if client.returncode != 0:
        message = f"The engine did not import the image {image}."
        raise ImageUnsuitableError(message, next_step="Its words are above.", exit_code=client.returncode, stderr=told)


def add_scripted(archive: tarfile.TarFile) -> None:
    """Add all that the image has."""
    for folder in ("bin", "dev", "etc", "home", "proc", "sys", "usr/bin", "usr/local/bin"):
        add_folder(archive, folder)
    add_folder(archive, "tmp", mode=0o1777)
    add_file(archive, "etc/passwd", PASSWD.encode())
    add_file(archive, "etc/group", GROUP.encode())
    if busybox := shutil.which("busybox"):
        add_programs(archive, {"busybox": busybox})
        applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
        for applet in applets:
            if applet != "busybox":
                add_link(archive, f"bin/{applet}", "busybox")
    else:
        add_programs(archive, {tool: path for tool in TOOLS.split() if (path := shutil.which(tool))})
    add_file(archive, f"usr/local/bin/{AGENT.name}", AGENT.read_bytes(), mode=0o755)
    add_link(archive, "usr/local/bin/claude", AGENT.name)


def add_file(archive: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    """Add a file of root's."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))


def add_folder(archive: tarfile.TarFile, name: str, *, mode: int = 0o755) -> None:
    """Add an empty folder of root's."""
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, mode
    archive.addfile(member)


def add_link(archive: tarfile.TarFile, name: str, target: str) -> None:
    """Add a symbolic link."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    archive.addfile(member)


def add_programs(archive: tarfile.TarFile, programs: Mapping[str, str], *, folder: str = "bin") -> None:
    """Add programs of this machine to a folder, and the libraries that they load."""
    libraries = set[str]()
    for name, path in programs.items():
        add_file(archive, f"{folder}/{name}", Path(path).read_bytes(), mode=0o755)
        # It fails, and prints no path, for a program that is linked statically.
        listed = subprocess.run(["ldd", path], check=False, capture_output=True, text=True).stdout
        libraries.update(re.findall(r"(/\S+) \(0x", listed))
    for library in sorted(libraries):
        add_file(archive, library.lstrip("/"), Path(library).read_bytes(), mode=0o755)
