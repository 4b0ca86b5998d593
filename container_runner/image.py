"""Images with an agent in them.

`build` lets the engine build the Containerfile of this package, from a base image of a registry or of this machine.
`build_from_scratch` asks no registry for images: it makes a Debian with mmdebstrap or debootstrap, adds the agent from
its npm package, and imports the result.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import anyio
import attrs

from container_runner import argv
from container_runner.engine import Engine, classify, spawn_error
from container_runner.environment import host_environment
from container_runner.errors import ConfigError, ContainerRunnerError
from container_runner.laws import pattern
from container_runner.lines import OversizedLine
from container_runner.process import Completed, Process

__all__ = ["AGENTS", "BuildError", "Built", "Recipe", "build", "build_from_scratch"]

CONTAINERFILE: Final = Path(__file__).parent / "images/Containerfile"

PACKAGES: Final = ("ca-certificates", "git", "procps", "ripgrep")
"""Debian packages that every image has: what coding agents call."""

BUILD_TIMEOUT: Final = 3600.0
"""Seconds that one step may be silent."""

START_TIMEOUT: Final = 120.0
"""Seconds that the new image's agent may take to tell its version."""

PATH: Final = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"

Say = Callable[[str], None]
"""Gets the lines of a build's progress. They may hold control characters."""


class BuildError(ContainerRunnerError):
    """An image could not be built."""

    kind = "build_failed"
    cli_exit_code = 4
    advice = "Read the lines above; to see the Containerfile: container-runner image containerfile."


@attrs.frozen(kw_only=True)
class AgentPackage:
    """An agent as npm has it."""

    package: str
    """The npm package that `npm install` takes."""

    program: str
    """The command that it installs."""

    version: str
    """The version that is installed if no other is asked for: the one that this package was tried with."""

    archive: str
    """What `npm pack` takes to get the program by itself; {cpu} is x64 or arm64, {version} the version."""

    entry: str
    """Where the program is in that archive, as a pattern."""

    debian: str = "bookworm"
    """The Debian release that has what the program needs."""

    needs: tuple[str, ...] = ()
    """The Debian packages that the program needs beside `PACKAGES`."""


AGENTS: Final[Mapping[str, AgentPackage]] = {
    "claude": AgentPackage(
        package="@anthropic-ai/claude-code",
        program="claude",
        version="2.1.330",
        archive="@anthropic-ai/claude-code-linux-{cpu}@{version}",
        entry="package/claude",
    ),
    "codex": AgentPackage(
        package="@openai/codex",
        program="codex",
        version="0.169.0",
        archive="@openai/codex@{version}-linux-{cpu}",
        entry="package/vendor/*/bin/codex",
    ),
    "gemini": AgentPackage(
        package="@google/gemini-cli",
        program="gemini",
        version="0.61.0",
        archive="@google/gemini-cli@{version}",
        entry="package/bundle/gemini.js",
        debian="trixie",  # the first with Node.js 20
        needs=("nodejs",),
    ),
}

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
        from container_runner.config import ContainerConfig

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
        BuildError: a step failed; the end of what it said is in `stderr`.
        EngineError: the engine could not do it, such as fetch the base image.
    """
    environ = host_environment()
    arguments = {
        **({"BASE": recipe.base} if recipe.base is not None else {}),
        "PACKAGES": " ".join((*PACKAGES, *recipe.packages)),
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
    except _Failed as failure:
        error = classify(Completed(returncode=failure.code, stdout=b"", stderr=failure.tail), "build")
        if error.kind == "pull_failed" or _is_out_of_reach(failure.tail):
            step = "Name a base image of this machine with --base, or ask no registry: add --from-scratch."
            message = "The base image could not be fetched."
            raise BuildError(message, next_step=step, exit_code=failure.code, stderr=failure.tail) from None
        message = f"The engine's `build` failed with code {failure.code}."
        raise BuildError(message, exit_code=failure.code, stderr=failure.tail) from None
    return await _try(engine, recipe)


_PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Build arguments that every builder knows without an ARG, and keeps out of the image's history."""


def _is_out_of_reach(said: str) -> bool:
    return any(words in said for words in ("dial tcp", "no such host", "connection refused", "i/o timeout"))


async def build_from_scratch(engine: Engine, recipe: Recipe, say: Say) -> Built:
    """Make an image of Debian's packages and the agent's npm package, without any registry of images.

    Raises:
        BuildError: a tool is missing on this machine, or a step failed.
        EngineError: the engine did not take the result.
    """
    release = recipe.base or recipe.agent.debian
    if not _is_release(release):
        raise ConfigError("base", release, "with --from-scratch the name of a Debian release, such as bookworm")
    cpu = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine())
    if cpu is None:
        raise BuildError(f"There is no package of {recipe.agent.program} for {platform.machine()}.")
    make_root = _root_maker()
    if shutil.which("npm") is None:
        raise BuildError("npm is not on this machine, and fetches the agent.", next_step="Type: apt-get install npm")
    packages = ",".join((*PACKAGES, *recipe.agent.needs, *recipe.packages))
    with tempfile.TemporaryDirectory(prefix="container-runner-image-", dir="/var/tmp", ignore_cleanup_errors=True) as name:  # noqa: E501, S108
        folder = Path(name)
        archive = folder / "root.tar"
        try:
            say(f"1/4 Debian {release} with {packages}")
            await make_root(archive, release, packages, say)
            source = recipe.agent.archive.format(cpu=cpu, version=recipe.agent_version)
            say(f"2/4 {source} of npm")
            await _stream(["npm", "pack", "--ignore-scripts", f"--pack-destination={folder}", source], say)
            say(f"3/4 {recipe.agent.program} into the image")
            package = next(folder.glob("*.tgz"))
            await anyio.to_thread.run_sync(add_agent, archive, package, recipe.agent)
            say(f"4/4 import as {recipe.tag}")
            changes = (f"ENV PATH={PATH}", "USER 1000:1000", "WORKDIR /workspace")
            command = argv.import_argv(engine.binary, tag=recipe.tag, changes=changes)
            await _stream(command, say, stdin=archive, env=engine.environ)
        except _Failed as failure:
            raise BuildError(f"{failure}.", exit_code=failure.code, stderr=failure.tail) from None
        except OSError as error:
            raise BuildError(f"The image's files could not be written: {error.strerror}.") from None
    return await _try(engine, recipe)


def _root_maker() -> Callable[[Path, str, str, Say], object]:
    """How this machine makes a Debian's root folder, as a function (archive, release, packages, say)."""


def add_agent(archive: Path, package: Path, agent: AgentPackage) -> None:
    """Add an agent's npm package to the tar archive of a root folder, and a user with the usual uid.

    Raises:
        BuildError: the package does not hold the program.
    """
    with tarfile.open(archive, "a") as root, tarfile.open(package) as files:
        program = None
        for member in files:
            # Whatever the package says: plain files of root's, below our folder.
            if not member.isreg() or ".." in Path(member.name).parts:
                continue
            if fnmatchcase(member.name, agent.entry):
                program = member.name
                member.mode |= 0o111
            target = f"usr/local/lib/{agent.program}/{member.name.removeprefix('package/')}"
            _add(root, target, files.extractfile(member), size=member.size, mode=0o755 if member.mode & 0o111 else 0o644)
        if program is None:
            raise BuildError(f"{agent.entry} is not in the npm package of {agent.program}.")
        link = tarfile.TarInfo(f"usr/local/bin/{agent.program}")
        link.type, link.linkname = tarfile.SYMTYPE, f"../lib/{agent.program}/{program.removeprefix('package/')}"
        root.addfile(link)
