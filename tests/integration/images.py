"""Images for the tests and for `make demo`, made from files of this machine: no registry is asked.

`tiny` is busybox (or, where there is none, the machine's own tools) with the scripted agent of `tests/images`.
`claude` is Debian with git, Python and the real claude CLI of npm; `claude-offline` in it talks to the stand-in for
the Messages API, `tests/messages_api.py`, that it starts in the same container, so it needs no network and no account.

`python -m tests.integration` makes ready in the cache what takes long to make.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import attrs

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "container-runner-tests"
"""Downloads, and images that take long to make. It may be deleted at any time."""

TESTS = Path(__file__).parent.parent
CLAUDE_VERSION = "2.1.330"

PATH = "/usr/local/bin:/usr/bin:/bin"
TOOLS = (
    "sh awk cat cut date dd env false grep head id kill ln ls mkdir mkfifo mv ps rm sed seq setsid sleep sort stat "
    "tail tee timeout touch tr true uname wc yes"
)
"""Where there is no busybox, these programs of the machine are taken."""

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
agent:x:1000:1000:agent:/home/agent:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/sh
"""
GROUP = "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n"

CLAUDE_OFFLINE = """\
#!/bin/sh
# The real claude, talking to the stand-in for the Messages API in this container.
port=$(mktemp)
python3 /opt/messages_api.py --port 0 --port-file "$port" --requests /tmp/requests.jsonl </dev/null >/dev/null 2>&1 &
until [ -s "$port" ]; do sleep 0.05; done
export ANTHROPIC_BASE_URL="http://127.0.0.1:$(cat "$port")"
export ANTHROPIC_API_KEY="${ANTHROPIC_API_KEY:-none}" CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
exec claude "$@"
"""


class Unavailable(Exception):  # noqa: N818 - it is an answer, not an error
    """What was asked for can not be had on this machine; says why."""


@attrs.frozen
class Images:
    """The images of one engine; each is imported when it is first asked for."""

    binary: str
    """The engine's client."""

    imported: list[str] = attrs.field(factory=list)
    """The names of those that were."""

    @cached_property
    def tiny(self) -> str:
        """About 2 MB: a shell, its tools, and the scripted agent as `scripted-agent` and as `claude`."""
        return self._import("tiny", add_tiny)

    @cached_property
    def attacker(self) -> str:
        """`tiny` with perl in it, for the agent `attacker`, which makes system calls that no shell can.

        Raises:
            Unavailable: this machine has no perl.
        """
        if (perl := shutil.which("perl")) is None:
            msg = "perl is not installed"
            raise Unavailable(msg)

        def add(archive: tarfile.TarFile) -> None:
            add_tiny(archive)
            add_programs(archive, {"perl": perl})
            add_link(archive, "usr/bin/perl", "/bin/perl")

        return self._import("attacker", add)

    @cached_property
    def git(self) -> str:
        """`tiny` with git, and GNU's find and tar, of this machine."""
        programs = {name: path for name in ("find", "git", "tar", "xargs") if (path := shutil.which(name))}

        def add(archive: tarfile.TarFile) -> None:
            add_tiny(archive)
            for name in programs:
                add_link(archive, f"usr/bin/{name}", f"/opt/bin/{name}")  # before busybox's on the PATH
            add_programs(archive, programs, folder="opt/bin")

        return self._import("git", add)

    @cached_property
    def claude(self) -> str:
        """About 600 MB: Debian, git, Python 3, and the real `claude`, with `claude-offline` beside it.

        Raises:
            Unavailable: its parts are not in the cache and can not be fetched.
        """
        base = claude_base()

        def add(archive: tarfile.TarFile) -> None:
            with tarfile.open(base) as packed:
                for member in packed:
                    archive.addfile(member, packed.extractfile(member) if member.isreg() else None)
            add_file(archive, "usr/local/bin/claude-offline", CLAUDE_OFFLINE.encode(), mode=0o755)
            add_file(archive, "opt/messages_api.py", (TESTS / "messages_api.py").read_bytes())

        return self._import("claude", add)

    def _import(self, name: str, add: Callable[[tarfile.TarFile], None]) -> str:
        image = f"container-runner-test/{name}"
        import_image(self.binary, image, add)
        self.imported.append(image)
        return image


def import_image(engine: str, image: str, add: Callable[[tarfile.TarFile], None]) -> None:
    """Make an image of the files that `add` adds to an archive.

    Raises:
        Unavailable: the engine did not take it; the message holds what it said.
    """
    client = subprocess.Popen(
        [engine, "import", f"--change=ENV PATH={PATH}", "-", image],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with client:
        assert client.stdin is not None
        assert client.stderr is not None
        # A client that fails ends early: the reason is what it says then, not our broken pipe.
        with (
            contextlib.suppress(BrokenPipeError),
            client.stdin as pipe,
            tarfile.open(fileobj=pipe, mode="w|") as archive,
        ):
            add(archive)
        told = client.stderr.read().decode(errors="replace")
    if client.returncode != 0:
        msg = f"{engine} did not import the image {image}: {told}"
        raise Unavailable(msg)


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


def add_tiny(archive: tarfile.TarFile) -> None:
    """Add all that the image `tiny` has."""
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
    for agent in (TESTS / "images").iterdir():
        add_file(archive, f"usr/local/bin/{agent.name}", agent.read_bytes(), mode=0o755)
    add_link(archive, "usr/local/bin/claude", "scripted-agent")


def add_programs(archive: tarfile.TarFile, programs: dict[str, str], *, folder: str = "bin") -> None:
    """Add programs of this machine to a folder, and the libraries that they load."""
    libraries = set[str]()
    for name, path in programs.items():
        add_file(archive, f"{folder}/{name}", Path(path).read_bytes(), mode=0o755)
        # It fails, and prints no path, for a program that is linked statically.
        listed = subprocess.run(["ldd", path], check=False, capture_output=True, text=True).stdout
        libraries.update(re.findall(r"(/\S+) \(0x", listed))
    for library in sorted(libraries):
        add_file(archive, library.lstrip("/"), Path(library).read_bytes(), mode=0o755)


def claude_base() -> Path:
    """The archive of Debian with claude in it, made if the cache does not have it (a minute, 600 MB)."""
    return cached(f"claude-{CLAUDE_VERSION}-{platform.machine()}.tar", make_claude_base)


def make_claude_base(target: Path) -> None:
    if os.geteuid() != 0:
        msg = "debootstrap needs root"
        raise Unavailable(msg)
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        root = Path(folder, "root")
        packages = "--include=ca-certificates,git,procps,python3"
        call("debootstrap", "--variant=minbase", packages, release, str(root))
        for surplus in ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(root / surplus)
        claude = root / "usr/local/bin/claude"
        with tarfile.open(claude_package()) as package:
            source = package.extractfile("package/claude")
            assert source is not None
            with source, claude.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        claude.chmod(0o755)
        for line, file in ((PASSWD.splitlines()[1], "passwd"), (GROUP.splitlines()[1], "group")):
            with (root / "etc" / file).open("a") as accounts:
                accounts.write(f"{line}\n")
        with tarfile.open(target, "w") as archive:
            archive.add(root, ".", filter=lambda member: None if member.ischr() or member.isblk() else member)


def claude_package() -> Path:
    """npm's package of the native binary for this machine."""
    cpu = {"x86_64": "x64", "aarch64": "arm64"}[platform.machine()]
    name = f"claude-code-linux-{cpu}"

    def fetch(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            call("npm", "pack", "--silent", f"--pack-destination={folder}", f"@anthropic-ai/{name}@{CLAUDE_VERSION}")
            next(Path(folder).iterdir()).rename(target)

    return cached(f"{name}-{CLAUDE_VERSION}.tgz", fetch)


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The file or folder of the cache; `make` makes it if it is not there, and again what it was cut short at."""
    target = CACHE / name
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of these tests may want the same
        part = CACHE / f"{name}.part"
        if not target.exists():
            delete(part)
            try:
                make(part)
                part.rename(target)
            finally:
                delete(part)
    return target


def delete(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def call(program: str, *arguments: str) -> None:
    """Run a program of this machine.

    Raises:
        Unavailable: it is not there, or it failed.
    """
    if (found := shutil.which(program)) is None:
        msg = f"{program} is not installed"
        raise Unavailable(msg)
    done = subprocess.run([found, *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        msg = f"{program} failed: {(done.stdout + done.stderr)[-2000:]}"
        raise Unavailable(msg)
