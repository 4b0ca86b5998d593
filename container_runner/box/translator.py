"""Paths of this machine as the container has them, and back."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from os.path import normpath
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import attrs
import msgspec

from container_runner.agents.runtime import CommandLineRuntime
from container_runner.box.sources import SYSTEM, contains, resolve_source, resolve_workspace, workspace_target
from container_runner.config import paths
from container_runner.config.container import ContainerConfig
from container_runner.errors import ConfigError
from container_runner.folders import expanded
from container_runner.options import Agent, ExecuteOptions, split_dir
from container_runner.stream.messages import AssistantMessage, ToolUseBlock

T = TypeVar("T")

PROGRAMS: Final = (*SYSTEM, "/nix", "/opt", "/snap", "/srv", "/var")
"""Where programs are, on this machine as in an image: a path in there does not tell which of the two is meant."""

TITLES: Final = ("file_path", "notebook_path", "path")
"""The fields of a tool's input that hold a path."""

_MENTION: Final = re.compile(r'(?<!\S)@(?:"(~?/[^"\n]+)"|(~?/[^\s"]+))')
_WORD: Final = re.compile(r"(--?[\w-]+=)?(~?/.*)", re.DOTALL)


@attrs.frozen
class Place:
    """A folder or file in the container, and what of this machine it is."""

    host: str | None
    """Its path here; None: it is the container's own."""

    inside: str


@attrs.frozen
class Translator:
    """Translates paths by what is mounted: the workspace, the folders of `add_dirs`, and the volumes.

    Made with `Translator.of(agent, config)`.
    """

    places: tuple[Place, ...]

    workspace: str = paths.WORKSPACE
    """Where the workspace is in the container."""

    @classmethod
    def of(cls, agent: Agent, config: ContainerConfig) -> Self:
        """The translator for what *agent* has in its container.

        Raises:
            ConfigError: its workspace, or a folder of `add_dirs`, may not be mounted.
        """
        workspace = None if agent.workspace is None else resolve_workspace(agent)
        places = [Place(None, paths.ROOT), Place(None, "/tmp")]  # noqa: S108  a path in the container
        target = workspace_target(config, workspace)
        places.append(Place(None if workspace is None else str(workspace), target))
        for index, word in enumerate(agent.add_dirs):
            folder = resolve_source(split_dir(word)[0], f"agent.add_dirs[{index}]")
            if workspace is None or not contains(workspace, folder):
                places.append(Place(str(folder), str(folder)))
        places += (Place(str(expanded(it.source, "volumes").resolve()), it.target) for it in config.volumes)
        places += (Place(None, it.target) for it in config.tmpfs)
        return cls(tuple(places), target)

    def to_container(self, path: str | os.PathLike[str]) -> str | None:
        """Where a path of this machine is in the container; None if it is not there.

        A relative path is one of the current folder, and links are followed where that leads somewhere.
        """
        given = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111  which follow links, or raise
        for host in dict.fromkeys((given, os.path.realpath(given))):
            found = [place for place in self.places if place.host is not None and _lies_in(host, place.host)]
            for place in sorted(found, key=lambda place: -len(place.host or "")):
                inside = f"{place.inside}{host[len(place.host or '') :]}"
                if self.to_host(inside) == host:  # nothing is mounted over it
                    return inside
        return None

    def to_host(self, path: str) -> str | None:
        """What a path in the container is on this machine; None if it is the container's own."""
        inside = normpath(path)
        place = self._place_of(inside)
        return None if place is None or place.host is None else f"{place.host}{inside[len(place.inside) :]}"

    def taken(self, path: str, field: str) -> str:
        """A path that somebody gave, as the container has it. One that is the container's already stays.

        Raises:
            ConfigError: the container has nothing of it.
        """
        inside = self.to_container(path)
        if inside is None and not self._is_inside(path):
            raise _not_there(path, field)
        return inside or normpath(path)

    def options(self, options: ExecuteOptions, *, mentions: bool = False) -> ExecuteOptions:
        """*options* as a process in the container takes them: its paths are those in there.

        Args:
            mentions: whether the agent reads the files that the prompt names as @/path or @"/path".

        Raises:
            ConfigError: one of them is a path that the container does not have.
        """
        agent = options.agent
        plugins = (self.taken(path, f"agent.plugin_dirs[{index}]") for index, path in enumerate(agent.plugin_dirs))
        more = (self.taken(split_dir(word)[0], f"agent.add_dirs[{index}]") for index, word in enumerate(agent.add_dirs))
        agent = attrs.evolve(
            agent,
            workspace=self.workspace,
            plugin_dirs=tuple(plugins),
            add_dirs=tuple(more),
            mcp_servers={name: self.server(name, server) for name, server in agent.mcp_servers.items()},
        )
        return attrs.evolve(options, agent=agent, prompt=self.prompt(options.prompt) if mentions else options.prompt)

    def prompt(self, text: str) -> str:
        """A prompt as the container takes it: the files that it names as @/path or @"/path" are those in there.

        Raises:
            ConfigError: the container has no such file.
        """
        return _MENTION.sub(self._mention, text) if "@" in text else text

    def shown(self, message: T) -> T:
        """*message* for people: where its tools are called with a path, with that of this machine.

        One in the current folder is relative to it.
        """
        if not isinstance(message, AssistantMessage):
            return message
        content = [self._shown(block) for block in message.content]
        if all(new is old for new, old in zip(content, message.content, strict=True)):
            return message
        return msgspec.structs.replace(message, message=msgspec.structs.replace(message.message, content=content))

    def _shown(self, block: Any) -> Any:
        if not isinstance(block, ToolUseBlock):
            return block
        found = {key: self._for_people(block.input[key]) for key in TITLES if isinstance(block.input.get(key), str)}
        if all(value == block.input[key] for key, value in found.items()):
            return block
        return msgspec.structs.replace(block, input={**block.input, **found})

    def _for_people(self, path: str) -> str:
        if not path.startswith("/") or (host := self.to_host(path)) is None:
            return path
        try:
            here = os.getcwd()  # noqa: PTH109  a string
        except OSError:  # it is deleted
            return host
        return host[len(here) :].lstrip("/") if here not in ("/", host) and _lies_in(host, here) else host

    def _place_of(self, inside: str) -> Place | None:
        """The innermost place that a path in the container lies in."""
        found = (place for place in self.places if _lies_in(inside, place.inside))
        return max(found, key=lambda place: len(place.inside), default=None)

    def _is_inside(self, path: str) -> bool:
        """Whether it is a path in the container. What is here, and not there when it starts, is one of this machine."""
        place = self._place_of(normpath(path))
        return place is not None and (place.host is not None or not os.path.lexists(path))

    def server(self, name: str, server: Any) -> Any:
        """An MCP server's command, with what of it are paths of this machine."""
        if not isinstance(server, Mapping):
            return server
        field, changed = f"agent.mcp_servers.{name}", dict(server)
        for key in ("command", "cwd"):
            if key in changed:
                changed[key] = self._word(changed[key], field)
        if isinstance(changed.get("args"), list | tuple):
            changed["args"] = [self._word(word, field) for word in changed["args"]]
        return changed

    def _word(self, word: Any, field: str) -> Any:
        match = _WORD.fullmatch(word) if isinstance(word, str) else None
        if match is None:
            return word
        flag, path = match[1] or "", match[2]
        return word if (inside := self.meant(path, field)) is None else f"{flag}{inside}"

    def _mention(self, match: re.Match[str]) -> str:
        text = match[1] or match[2]
        # Behind a path may stand the end of a sentence.
        path = text if match[1] or os.path.lexists(os.path.expanduser(text)) else text.rstrip(".,:;!?)")  # noqa: PTH111  a string
        inside, rest = self.meant(path, "prompt"), text[len(path) :]
        if inside is None:
            return match[0]
        return f'@"{inside}"{rest}' if match[1] or re.search(r"\s", inside) else f"@{inside}{rest}"

    def is_around(self, path: str) -> bool:
        """Whether something in this folder of this machine is mounted at another path."""
        given = os.path.realpath(os.path.expanduser(path))  # noqa: PTH111  a string
        return any(it.host not in (None, it.inside) and _lies_in(it.host or "", given) for it in self.places)

    def meant(self, path: str, field: str) -> str | None:
        """A path that stands in a text, as the container has it; None if it is not one of this machine's.

        Raises:
            ConfigError: it is, and the container has nothing of it.
        """
        inside = self.to_container(path)
        if inside is None and not self._is_inside(path) and _is_of_a_person(path):
            raise _not_there(path, field)
        return inside


def in_container(
    options: ExecuteOptions, config: ContainerConfig, runtime: CommandLineRuntime
) -> tuple[ExecuteOptions, str]:
    """*options* as *runtime* takes them in a container, and where the workspace is in there."""
    translator = Translator.of(options.agent, config)
    return translator.options(options, mentions=runtime.reads_mentions), translator.workspace


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _is_of_a_person(path: str) -> bool:
    """Whether a file of somebody's is here by this name, and not one that every system has."""
    found = Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111  which follow links, or raise
    return len(found.parts) > 2 and not any(_lies_in(str(found), place) for place in PROGRAMS) and found.exists()


def _not_there(path: str, field: str) -> ConfigError:
    folder = path if Path(path).is_dir() else os.path.dirname(path.rstrip("/"))  # noqa: PTH120  a string
    allowed = f"a path in the workspace or in a folder that is mounted, as --add-dir={folder} does to read it"
    return ConfigError(field, path, allowed, told=f"{field} {path}: the container has no such path; give {allowed}")
