"""Images for the tests, made from files of this machine: no registry is asked.

`tiny` is that of the demo, with the agent of `tests/images` too.
`claude` is Debian with git, Python and the real claude CLI of npm; `claude-offline` in it talks to the stand-in for
the Messages API, `tests/messages_api.py`, that it starts in the same container, so it needs no network and no account.
`agents` is the same with the other agents, and the stand-ins of `tests/model_apis.py`.

`python -m tests.integration` makes ready in the cache what takes long to make.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import attrs

from container_runner.agents.packages import NODE, PACKAGES
from container_runner.engine.image import add_agent, add_node
from container_runner.errors import ImageUnsuitableError
from container_runner.testing import scripted
from container_runner.testing.scripted import (
    GROUP,
    PASSWD,
    add_file,
    add_folder,
    add_link,
    add_programs,
    add_scripted,
)

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "container-runner-tests"
"""Downloads, and images that take long to make. It may be deleted at any time."""

TESTS = Path(__file__).parent.parent
CLAUDE_VERSION = "2.1.330"
CODEX_ACP_VERSION = "2.6.0"
AGENT_SDK_VERSION = "0.2.189"

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


__all__ = ["GROUP", "PASSWD", "add_file", "add_folder", "add_link", "add_programs"]
"""What other tests make images of, too."""


AGENTS = ("codex", "gemini", "qwen", "opencode", "copilot")
"""What the image `agents` has, by the kinds of agents."""

STAND_IN = "http://127.0.0.1:8631"
"""Where the stand-ins for their APIs listen, in the same container."""

AGENT_OFFLINE = f"""\
#!/bin/sh
# The real agent, whose model's API is the stand-in in this container.
port=$(mktemp)
python3 /opt/model_apis.py --port {STAND_IN.rpartition(":")[2]} --port-file "$port" --requests /tmp/requests.jsonl \\
  </dev/null >/dev/null 2>&1 &
until [ -s "$port" ]; do sleep 0.05; done
program=${{0##*/}}
exec "${{program%-offline}}" "$@"
"""


CODEX_ACP = """\
#!/bin/sh
CODEX_PATH=/usr/local/bin/codex exec node /usr/local/lib/codex-acp.mjs
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
        """`tiny` with git, perl, and GNU's find and tar, of this machine."""
        programs = {name: path for name in ("find", "git", "perl", "tar", "xargs") if (path := shutil.which(name))}

        def add(archive: tarfile.TarFile) -> None:
            add_tiny(archive)
            for name in programs:
                add_link(archive, f"usr/bin/{name}", f"/opt/bin/{name}")  # before busybox's on the PATH
            add_programs(archive, programs, folder="opt/bin")

        return self._import("git", add)

    @cached_property
    def python(self) -> str:
        """`tiny` with this machine's Python, and of its library what the gateway and a client of it import: 20 MB."""

        def add(archive: tarfile.TarFile) -> None:
            add_tiny(archive)
            add_python(archive)

        return self._import("python", add)

    @cached_property
    def claude(self) -> str:
        """About 600 MB: Debian, git, Python 3, and the real `claude`, with `claude-offline` beside it.

        Raises:
            Unavailable: its parts are not in the cache and can not be fetched.
        """
        base = claude_base()

        def add(archive: tarfile.TarFile) -> None:
            copy_archive(base, archive)
            add_file(archive, "usr/local/bin/claude-offline", CLAUDE_OFFLINE.encode(), mode=0o755)
            add_file(archive, "opt/messages_api.py", (TESTS / "messages_api.py").read_bytes())

        return self._import("claude", add)

    @cached_property
    def agents(self) -> str:
        """About 1.3 GB: Debian, git, Python 3, and the real codex, codex-acp, gemini, qwen, opencode and copilot.

        Each has a `codex-offline` beside it, which starts the stand-ins of `model_apis.py` in the same container, at
        `STAND_IN`.

        Raises:
            Unavailable: its parts are not in the cache and can not be fetched.
        """
        base = agents_base()
        adapter = npm_package(f"@agentclientprotocol/codex-acp@{CODEX_ACP_VERSION}", f"codex-acp-{CODEX_ACP_VERSION}")

        def add(archive: tarfile.TarFile) -> None:
            copy_archive(base, archive)
            with tarfile.open(adapter) as package:  # 2 MB in one file, for the Node.js and the codex that are there
                source = package.extractfile("package/dist/index.js")
                assert source is not None
                add_file(archive, "usr/local/lib/codex-acp.mjs", source.read())
            add_file(archive, "usr/local/bin/codex-acp", CODEX_ACP.encode(), mode=0o755)
            for name in (*AGENTS, "codex-acp"):
                add_file(archive, f"usr/local/bin/{name}-offline", AGENT_OFFLINE.encode(), mode=0o755)
            for name in ("messages_api.py", "model_apis.py"):
                add_file(archive, f"opt/{name}", (TESTS / name).read_bytes())

        return self._import("agents", add)

    def _import(self, name: str, add: Callable[[tarfile.TarFile], None]) -> str:
        image = f"container-runner-test/{name}"
        import_image(self.binary, image, add)
        self.imported.append(image)
        return image


def add_tiny(archive: tarfile.TarFile) -> None:
    """Add all that the image `tiny` has."""
    add_scripted(archive)
    for agent in (TESTS / "images").iterdir():
        add_file(archive, f"usr/local/bin/{agent.name}", agent.read_bytes(), mode=0o755)


LISTED = """\
import json, os, selectors, signal, socket, struct, sys, time
"".encode("idna")
print(sys.executable, *{it.__file__ for it in sys.modules.values() if getattr(it, "__file__", None)}, sep="\\n")
"""


def add_python(archive: tarfile.TarFile) -> None:
    """Add this machine's Python as `python3`, and the modules of its library that `LISTED` imports."""
    program = str(getattr(sys, "_base_executable", sys.executable))
    listed = subprocess.run([program, "-I", "-c", LISTED], check=True, capture_output=True, text=True).stdout
    program, *modules = map(os.path.realpath, listed.splitlines())
    files = [file for file in modules if Path(file).is_file() and "site-packages" not in file]
    for file in files:
        if not file.endswith(".so"):
            add_file(archive, file.lstrip("/"), Path(file).read_bytes())
    loading = [program, *(file for file in files if file.endswith(".so"))]
    add_programs(archive, {file.lstrip("/"): file for file in loading}, folder=".")  # at once: each library once
    add_link(archive, "bin/python3", program)


def import_image(engine: str, image: str, add: Callable[[tarfile.TarFile], None]) -> None:
    """See `scripted.import_image`.

    Raises:
        Unavailable: the engine did not take it; the message holds what it said.
    """
    try:
        scripted.import_image(engine, image, add)
    except ImageUnsuitableError as error:
        raise Unavailable(f"{engine}: {error.message} {error.stderr}") from None


def copy_archive(source: Path, archive: tarfile.TarFile, *, without: str = "") -> None:
    """Add all that is in another archive, but for one file."""
    with tarfile.open(source) as packed:
        for member in packed:
            if not without or member.name.removeprefix("./") != without:
                archive.addfile(member, packed.extractfile(member) if member.isreg() else None)


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


def agent_sdk() -> Path:
    """A folder with the Python package claude-agent-sdk and what it needs, for the Python of Debian with claude in it.

    Raises:
        Unavailable: it is not in the cache and can not be fetched.
    """
    with tarfile.open(claude_base()) as archive:
        names = (member.name for member in archive)
        found = next(filter(None, (re.match(r"\./usr/bin/python(3\.\d+)$", name) for name in names)))
    version = found[1]

    def fetch(target: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        platforms = [f"--platform=manylinux_2_{glibc}_{platform.machine()}" for glibc in (17, 28, 34)]
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            # Without the claude that is in its wheel: 380 MB.
            source = f"claude-agent-sdk=={AGENT_SDK_VERSION}"
            no_wheel = "--no-binary=claude-agent-sdk"
            call(*pip, "download", "--no-deps", no_wheel, f"--dest={folder}", source)
            with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as package:
                package.extractall(folder, filter="data")
            only = ("--only-binary=:all:", f"--python-version={version}", *platforms)
            call(*pip, "install", *only, f"--target={target}", "anyio", "jsonschema", "mcp>=1.23,<3", "sniffio")
            next(Path(folder).glob("*/src/claude_agent_sdk")).rename(target / "claude_agent_sdk")

    return cached(f"claude-agent-sdk-{AGENT_SDK_VERSION}-{version}-{platform.machine()}", fetch)


def claude_package() -> Path:
    """npm's package of the native binary for this machine."""
    name = f"claude-code-linux-{cpu()}"
    return npm_package(f"@anthropic-ai/{name}@{CLAUDE_VERSION}", f"{name}-{CLAUDE_VERSION}")


def agents_base() -> Path:
    """The archive of Debian with the other agents in it, made if the cache does not have it (two minutes, 1.3 GB)."""
    versions = "-".join(PACKAGES[name].version for name in AGENTS)
    return cached(f"agents-{versions}-{platform.machine()}.tar", make_agents_base)


def make_agents_base(target: Path) -> None:
    with tarfile.open(target, "w") as archive:
        copy_archive(claude_base(), archive, without="usr/local/bin/claude")
    add_node(target, npm_package(f"node-linux-{cpu()}@{NODE}", f"node-{NODE}-{cpu()}"))
    for name in AGENTS:
        agent = PACKAGES[name]
        source = agent.archive.format(cpu=cpu(), version=agent.version)
        add_agent(target, npm_package(source, f"{name}-{agent.version}-{cpu()}"), agent)


def cpu() -> str:
    """This machine's kind of processor, as npm's packages call it."""
    return {"x86_64": "x64", "aarch64": "arm64"}[platform.machine()]


def npm_package(package: str, name: str) -> Path:
    """A package of npm's, kept in the cache by this name."""

    def fetch(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            call("npm", "pack", "--silent", "--ignore-scripts", f"--pack-destination={folder}", package)
            next(Path(folder).iterdir()).rename(target)

    return cached(f"{name}.tgz", fetch)


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
