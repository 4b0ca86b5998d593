"""`container-runner image`: images with an agent in them."""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Literal

import anyio
from cyclopts import App, Parameter

from container_runner.cli.containers import EngineFlags, JsonFlag, configured, open_engine, print_json
from container_runner.cli.text import clean
from container_runner.errors import EngineError

if TYPE_CHECKING:
    from container_runner.engine.image import Built, Recipe
    from container_runner.runner import ContainerRunner

image = App(name="image")


@image.command
def build(
    agent: Literal["claude", "codex", "gemini", "qwen", "opencode", "copilot"] = "claude",
    *,
    tag: str | None = None,
    base: str | None = None,
    agent_version: str | None = None,
    packages: Annotated[tuple[str, ...], Parameter(alias="--package", negative=())] = (),
    from_scratch: Annotated[bool, Parameter(negative=())] = False,
    pull: Annotated[bool, Parameter(negative=())] = False,
    cache: bool = True,
    json: JsonFlag = False,
    flags: EngineFlags | None = None,
) -> None:
    """Build an image with an agent, git, ripgrep and ps, and try it.

    The progress goes to stderr. The image is the default for runs of this agent from then on.

    Args:
        agent: Which agent; `run --agent-kind` calls it the same.
        tag: The image's name. Default: container-runner/AGENT.
        base: The image to build on; it needs npm. Default: node:22-bookworm-slim. With --from-scratch: the Debian
            release.
        agent_version: The agent's version, or latest. Default: the one that this release of container-runner was
            tried with.
        packages: A Debian package to add. Can be given again.
        from_scratch: Ask no registry of images: make a Debian with mmdebstrap or debootstrap, and fetch the agent
            with npm.
        pull: Ask the registry for a newer base image.
        cache: Reuse the steps of earlier builds.
        json: Print a JSON object on the image instead of text for people.
    """
    from container_runner.config.tiers import remember_built
    from container_runner.engine.image import AGENTS, Recipe

    recipe = Recipe(
        agent=AGENTS[agent],
        tag=tag or f"container-runner/{agent}",
        base=base,
        version=agent_version,
        packages=packages,
        pull=pull,
        cache=cache,
    )
    flags = flags or EngineFlags()
    started = time.monotonic()
    built = anyio.run(_build, flags, recipe, from_scratch)
    seconds = round(time.monotonic() - started, 1)
    is_default = False
    with suppress(OSError):
        remember_built(built.image, flags.config, kind=agent)
        is_default = True
    if json:
        facts = {"image": built.image, "id": built.id, "agent": agent, "version": built.version, "seconds": seconds}
        print_json(facts)
        return
    said = f"Built {built.image} with {agent} {clean(built.version)} in {seconds:g} s"
    print(f"{said}{f'; it is the default image for {agent} now' if is_default else ''}. Next:")
    words = ["container-runner", "doctor", f"--image={built.image}"]
    words += [f"--agent-kind={agent}"] if agent != "claude" else []
    words += [f"--engine={flags.engine}"] if flags.engine is not None else []
    print(f"  {shlex.join(words)}")


@image.command
def pull(name: str | None = None, *, json: JsonFlag = False, flags: EngineFlags | None = None) -> None:
    """Fetch an image from its registry.

    The progress goes to stderr.

    Args:
        name: The image. Default: the configured one.
        json: Print a JSON object on the image instead of text for people.
    """
    flags = flags or EngineFlags()
    wanted = name or configured(flags).config.image
    anyio.run(_pull, flags, wanted)
    if json:
        print_json({"image": wanted})
    else:
        print(f"Pulled {clean(wanted)}.")


async def _pull(flags: EngineFlags, name: str) -> None:
    from container_runner.engine.image import pull

    progress = Progress()
    with progress.told_once():
        await pull(await open_engine(flags), name, progress.say)


@image.command
def containerfile(*, json: JsonFlag = False) -> None:
    """Print the Containerfile that `image build` uses, to change it or to read it.

    Args:
        json: Print a JSON object with the text in it.
    """
    from container_runner.engine.image import CONTAINERFILE

    text = CONTAINERFILE.read_text("utf-8")
    if json:
        print_json({"containerfile": text})
    else:
        sys.stdout.write(text)


async def _build(flags: EngineFlags, recipe: Recipe, from_scratch: bool) -> Built:
    from container_runner.engine.image import build, build_from_scratch

    progress = Progress()
    engine = await open_engine(flags)
    with progress.told_once():
        return await (build_from_scratch if from_scratch else build)(engine, recipe, progress.say)


class Progress:
    """What an engine says while it works, passed on to stderr."""

    def __init__(self) -> None:
        self._said: deque[str] = deque(maxlen=100)

    def say(self, line: str) -> None:
        """Pass on a line."""
        self._said.append(line.strip())
        shown = line.rstrip("\r").rpartition("\r")[2]  # a line that was written over itself, as a terminal shows it
        print(clean(shown), file=sys.stderr, flush=True)

    @contextmanager
    def told_once(self) -> Iterator[None]:
        """Leave out of an error what stands just above it."""
        try:
            yield
        except EngineError as error:
            if error.stderr.strip().rpartition("\n")[2].strip() in self._said:
                error.stderr = ""
            raise


async def fetch(runner: ContainerRunner) -> None:
    """Pull a run's image before the run, with its progress, if it is to be pulled.

    Raises:
        EngineError: see `engine.image.pull`.
    """
    from container_runner.engine.image import is_there, pull

    wanted, image = runner.config.pull, runner.config.image
    if wanted == "never":
        return
    engine = (await runner.manager()).engine
    if wanted == "missing" and await is_there(engine, image):
        return
    progress = Progress()
    progress.say(f"· pulling {image}")
    with progress.told_once():
        await pull(engine, image, progress.say)
