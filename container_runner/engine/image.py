"""Images with an agent in them.

`build` lets the engine build the Containerfile of this package, from a base image of a registry or of this machine.
`build_from_scratch` asks no registry for images: it makes a Debian with mmdebstrap or debootstrap, adds the agent from
its npm package, and imports the result.
"""

from __future__ import annotations

import os
import platform
import shutil
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import anyio
import attrs

from container_runner.agents.packages import PACKAGES, AgentPackage
from container_runner.box import argv
from container_runner.box.environment import host_environment
from container_runner.config.laws import pattern
from container_runner.engine.engine import Engine
from container_runner.engine.failures import classify
from container_runner.errors import (
    ConfigError,
    EngineArgumentError,
    EngineError,
    EngineTimeoutError,
    ImageNotFoundError,
    ImageUnsuitableError,
    PullFailedError,
)
from container_runner.stream.command import Completed
from container_runner.stream.lines import OversizedLine
from container_runner.stream.process import Process

__all__ = ["AGENTS", "AgentPackage", "Built", "Recipe", "build", "build_from_scratch"]

CONTAINERFILE: Final = Path(__file__).with_name("Containerfile")

DEBIAN: Final = ("ca-certificates", "git", "procps", "ripgrep")
"""Debian packages that every image has: what coding agents call."""

BUILD_TIMEOUT: Final = 1800.0
"""Seconds that one step may be silent."""

START_TIMEOUT: Final = 120.0
"""Seconds that the new image's agent may take to tell its version."""

PATH: Final = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"

SYSTEM_PATH: Final = ":/usr/sbin:/sbin"
"""Where debootstrap is, which an ordinary user's PATH leaves out."""

Say = Callable[[str], None]
"""Gets the lines of a build's progress. They may hold control characters."""

READ_IT: Final = "Read the lines above; `container-runner image containerfile` shows what was built."


AGENTS: Final = PACKAGES
"""The agents that an image can have, by their kinds."""

_is_version = pattern(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", longest=128)
_is_package = pattern(r"[a-z0-9][a-z0-9.+-]*", longest=128)
_is_release = pattern(r"[a-z][a-z0-9-]*", longest=64)


@attrs.frozen(kw_only=True)
class Recipe:
    """What to build.

    Raises:
        ConfigError: a value that is refused.
    """

    agent: AgentPackage
    tag: str
    """The new image's name."""

    base: str | None = None
    """The image to build on, or from scratch the Debian release. None: node:22-bookworm-slim, or the agent's own."""

    version: str | None = None
    """The agent's version, or "latest". None: `AgentPackage.version`."""

    packages: tuple[str, ...] = ()
    """Debian packages to add."""

    pull: bool = False
    """Ask the registry for a newer base image."""

    cache: bool = True
    """Reuse the steps of earlier builds."""

    def __attrs_post_init__(self) -> None:
        from container_runner.config.container import ContainerConfig

        for field, image in (("tag", self.tag), ("base", self.base)):
            try:
                ContainerConfig(image="any" if image is None else image)
            except ConfigError as error:
                raise ConfigError(field, image, error.allowed) from None
        if self.version is not None and not _is_version(self.version):
            raise ConfigError("agent_version", self.version, "a version such as 2.1.330, or latest")
        for index, package in enumerate(self.packages):
            if not _is_package(package):
                raise ConfigError(f"packages[{index}]", package, "the name of a Debian package")

    @property
    def agent_version(self) -> str:
        return self.version or self.agent.version


@attrs.frozen(kw_only=True)
class Built:
    """An image that was built, and whose agent has told its version."""

    image: str
    id: str
    version: str
    """What the agent said."""


async def build(engine: Engine, recipe: Recipe, say: Say) -> Built:
    """Build an image with the engine.

    Raises:
        PullFailedError: the base image could not be fetched.
        ImageUnsuitableError: a step failed, or the agent does not start; the end of what was said is in `stderr`.
        EngineError: the engine could not do it.
    """
    environ = host_environment()
    arguments = {
        **({"BASE": recipe.base} if recipe.base is not None else {}),
        "PACKAGES": " ".join((*DEBIAN, *recipe.packages)),
        "AGENT_PACKAGE": recipe.agent.package,
        "AGENT_VERSION": recipe.agent_version,
    }
    command = argv.build_argv(
        engine.binary,
        tag=recipe.tag,
        arguments=arguments,
        inherited=[name for name in _PROXIES if name in environ],
        pull=recipe.pull,
        cache=recipe.cache,
    )
    try:
        await _stream(command, say, stdin=CONTAINERFILE, env=engine.environ)
    except ImageUnsuitableError as failure:
        code, said = failure.exit_code or 0, failure.stderr
        error = classify(Completed(returncode=code, stdout=b"", stderr=said), "build")
        if error.kind == "pull_failed" or any(words in said for words in _OUT_OF_REACH):
            step = "Name a base image of this machine with --base, or ask no registry: add --from-scratch."
            raise PullFailedError(
                "The base image could not be fetched.", next_step=step, exit_code=code, stderr=said
            ) from None
        if type(error) is not EngineError:
            raise error from None
        message = f"The engine's `build` failed with code {code}."
        raise ImageUnsuitableError(message, next_step=READ_IT, exit_code=code, stderr=said) from None
    return await _try(engine, recipe)


async def pull(engine: Engine, image: str, say: Say) -> None:
    """Fetch an image from its registry.

    Raises:
        PullFailedError: it could not be fetched; the end of what was said is in `stderr`.
        EngineError: the engine could not do it.
    """
    try:
        await _stream(argv.pull_argv(engine.binary, image), say, env=engine.environ)
    except ImageUnsuitableError as failure:
        code, said = failure.exit_code or 0, failure.stderr
        error = classify(Completed(returncode=code, stdout=b"", stderr=said), "pull")
        if type(error) in (EngineError, EngineArgumentError, ImageNotFoundError):
            # Whatever a registry says, in whatever words: nothing but the pull was tried.
            error = PullFailedError(f"The image {image} could not be pulled.", exit_code=code, stderr=said)
        raise error from None


async def is_there(engine: Engine, image: str) -> bool:
    """Whether an image is on the engine's machine."""
    return (await engine.run(argv.image_argv(engine.binary, image), check=False)).returncode == 0


_PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Build arguments that every builder knows without an ARG, and keeps out of the image's history."""


_OUT_OF_REACH: Final = ("dial tcp", "no such host", "connection refused", "i/o timeout")
"""What builders say of a registry that they can not reach."""


async def build_from_scratch(engine: Engine, recipe: Recipe, say: Say) -> Built:
    """Make an image of Debian's packages and the agent's npm package, without any registry of images.

    Raises:
        ImageUnsuitableError: a tool is missing on this machine, a step failed, or the agent does not start.
        EngineError: the engine could not do it.
    """
    agent = recipe.agent
    release = recipe.base or agent.debian
    if not _is_release(release):
        raise ConfigError("base", release, "with --from-scratch the name of a Debian release, such as bookworm")
    cpu = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine())
    if cpu is None or platform.system() != "Linux":
        message = "Only Linux on x86_64 or arm64 can make an image from scratch."
        raise ImageUnsuitableError(message, next_step="Build it with a registry, without --from-scratch.")
    packages = ",".join((*DEBIAN, *agent.needs, *recipe.packages))
    _check_tools()
    debian = _debian(release, packages)
    source = agent.archive.format(cpu=cpu, version=recipe.agent_version)
    # Not /tmp, which may be memory: it takes 2 GB.
    with tempfile.TemporaryDirectory(prefix="cr-image-", dir="/var/tmp", ignore_cleanup_errors=True) as made:
        folder, archive = Path(made), Path(made, "root.tar")
        try:
            say(f"1/4 Debian {release} with {packages}")
            await _stream(debian(folder), say)
            await anyio.to_thread.run_sync(_pack, folder)
            node = [] if agent.node is None else [f"node-linux-{cpu}@{agent.node}"]
            say(f"2/4 {' and '.join([source, *node])} of npm")
            for name, place in ((source, folder / "agent"), *((name, folder / "node") for name in node)):
                place.mkdir()
                await _stream(["npm", "pack", "--ignore-scripts", f"--pack-destination={place}", name], say)
            say(f"3/4 {agent.program} goes into the image")
            for package in (folder / "node").glob("*.tgz"):
                await anyio.to_thread.run_sync(add_node, archive, package)
            await anyio.to_thread.run_sync(add_agent, archive, next((folder / "agent").glob("*.tgz")), agent)
            say(f"4/4 import as {recipe.tag}")
            changes = (f"ENV PATH={PATH}", "USER 1000:1000", "WORKDIR /workspace")
            command = argv.import_argv(engine.binary, tag=recipe.tag, changes=changes)
            await _stream(command, say, stdin=archive, env=engine.environ)
        except OSError as error:
            message = f"The image's files could not be written: {error.strerror}."
            raise ImageUnsuitableError(message, next_step="Make room in /var/tmp: it takes 2 GB.") from None
    return await _try(engine, recipe)


_USERS: Final = "\n".join(
    f"agent-{uid}:x:{uid}:{uid}:agent:/home/agent:/bin/sh" for uid in (1000, *range(501, 511), *range(1001, 1101))
)
"""Names for the usual uids, as the Containerfile gives them."""

_SURPLUS: Final = ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists")
"""Folders of a new Debian that nobody misses in a container."""


def _check_tools() -> None:
    """See that this machine can make a Debian and fetch an agent.

    Raises:
        ImageUnsuitableError: it lacks something; all of it is named at once.
    """
    told, packages, otherwise = list[str](), list[str](), ""
    if shutil.which("mmdebstrap") is None:
        if _debootstrap() is None:
            told.append("Neither mmdebstrap nor debootstrap is on this machine; either makes the image's Debian.")
            packages.append("mmdebstrap")
        elif os.geteuid() != 0:
            told.append("debootstrap needs root, and mmdebstrap, which does not, is not on this machine.")
            packages.append("mmdebstrap")
            otherwise = ", or run this as root"
    if shutil.which("npm") is None:
        told.append("npm is not on this machine; it fetches the agent.")
        packages.append("npm")
        otherwise = ""
    if packages:
        line = f"apt-get install {' '.join(packages)}"
        raise ImageUnsuitableError(" ".join(told), next_step=f"Type: {line}{otherwise}")


def _debootstrap() -> str | None:
    return shutil.which("debootstrap", path=f"{host_environment().get('PATH', '')}{SYSTEM_PATH}")


def _debian(release: str, packages: str) -> Callable[[Path], list[str]]:
    """How this machine makes a Debian: the command that leaves it as `root.tar` or as `root` in a folder."""
    if shutil.which("mmdebstrap"):
        leave_out = (f"--dpkgopt=path-exclude=/{surplus}/*" for surplus in _SURPLUS[:3])
        user = f'--customize-hook=for user in {" ".join(_USERS.split())}; do echo $user; done >>"$1/etc/passwd"'
        options = ("mmdebstrap", "--variant=minbase", f"--include={packages}", *leave_out, user, release)
        return lambda folder: [*options, str(folder / "root.tar")]
    # What it mounts is gone with it, however it ends.
    command = ("unshare", "--mount", _debootstrap() or "debootstrap")
    options = (*command, "--variant=minbase", f"--include={packages}", release)
    return lambda folder: [*options, str(folder / "root")]


def _pack(folder: Path) -> None:
    """Make `root.tar` of `root`, if it is not there already."""
    root = folder / "root"
    if not root.exists():
        return
    for surplus in _SURPLUS:
        shutil.rmtree(root / surplus, ignore_errors=True)
    with (root / "etc/passwd").open("a") as users:
        users.write(f"{_USERS}\n")
    with tarfile.open(folder / "root.tar", "w") as tar:
        # The engine makes the devices; a container's are not the image's.
        tar.add(root, ".", filter=lambda member: None if member.ischr() or member.isblk() else member)


def add_agent(archive: Path, package: Path, agent: AgentPackage) -> None:
    """Add an agent's npm package to the tar archive of a root folder.

    Raises:
        ImageUnsuitableError: the package does not hold the program.
    """
    program = None
    with tarfile.open(archive, "a") as tar, tarfile.open(package) as files:
        for member in files:
            name = member.name.removeprefix("package/")
            # Plain files below our folder, of root's, whatever the package says.
            if not member.isreg() or member.name.startswith("/") or ".." in Path(member.name).parts:
                continue
            is_program = fnmatchcase(member.name, agent.entry)
            program = name if is_program else program
            mode = 0o755 if is_program or member.mode & 0o111 else 0o644
            content = files.extractfile(member)
            copy = tarfile.TarInfo(f"usr/local/lib/{agent.program}/{name}")
            copy.size, copy.mode = member.size, mode
            tar.addfile(copy, content)
        link = tarfile.TarInfo(f"usr/local/bin/{agent.program}")
        link.type, link.linkname = tarfile.SYMTYPE, f"../lib/{agent.program}/{program}"
        tar.addfile(link)
    if program is None:
        message = f"{agent.entry} is not in the npm package of {agent.program}."
        raise ImageUnsuitableError(message, next_step="Choose another --agent-version.")


def add_node(archive: Path, package: Path) -> None:
    """Add the Node.js of an npm package to the tar archive of a root folder."""
    with tarfile.open(archive, "a") as tar, tarfile.open(package) as files:
        member = files.getmember("package/bin/node")
        copy = tarfile.TarInfo("usr/local/bin/node")
        copy.size, copy.mode = member.size, 0o755
        tar.addfile(copy, files.extractfile(member))


async def _stream(
    command: Sequence[str], say: Say, *, stdin: Path = Path(os.devnull), env: Mapping[str, str] | None = None
) -> None:
    """Run a command to its end, with a file on its stdin, and pass on what it says on stdout and stderr.

    Raises:
        ImageUnsuitableError: it failed; the end of what it said is in `stderr`.
        EngineTimeoutError: it was silent for `BUILD_TIMEOUT` seconds.
    """
    # Which of the two a builder speaks on depends on the builder; the shell joins them.
    joined = ["sh", "-c", 'input=$1; shift; exec "$@" <"$input" 2>&1', "sh", str(stdin), *command]
    process = await Process.start(joined, env=env)
    tail: deque[str] = deque(maxlen=5)
    try:
        while lines := await process.read(BUILD_TIMEOUT):
            for line in lines:
                text = (line.head if isinstance(line, OversizedLine) else line).decode("utf-8", "replace")
                tail.append(text)
                say(text)
        code = await process.wait()
    except TimeoutError:
        raise EngineTimeoutError(f"{command[0]} was silent for {BUILD_TIMEOUT / 60:g} minutes.") from None
    finally:
        with anyio.CancelScope(shield=True):
            await process.terminate()
        process.close()
    if code != 0:
        message = f"{command[0]} failed with code {code}."
        raise ImageUnsuitableError(message, next_step="Read the lines above.", exit_code=code, stderr="\n".join(tail))


async def _try(engine: Engine, recipe: Recipe) -> Built:
    """Ask the new image's agent for its version.

    Raises:
        ImageUnsuitableError: it does not start.
    """
    command = argv.try_argv(engine.binary, image=recipe.tag, program=recipe.agent.program, arguments=["--version"])
    done = await engine.run(command, timeout=START_TIMEOUT, check=False)
    if done.returncode != 0:
        message = f"{recipe.tag} was built, but its {recipe.agent.program} fails with code {done.returncode}."
        stderr = f"{done.text}\n{done.stderr}".strip()
        # With these codes it may be the engine that fails, whatever the image.
        step = f"Type: container-runner doctor --image={recipe.tag}" if 125 <= done.returncode <= 127 else READ_IT
        raise ImageUnsuitableError(message, next_step=step, exit_code=done.returncode, stderr=stderr)
    image_id = (await engine.run(argv.image_argv(engine.binary, recipe.tag))).text.strip()
    version = (done.text.strip().splitlines() or [""])[0]
    return Built(image=recipe.tag, id=image_id.removeprefix("sha256:"), version=version)
