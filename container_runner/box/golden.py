"""Commands as text to keep: the same each time and on every machine, and a flag on a line of its own."""

from __future__ import annotations

import csv
import functools
import re
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from container_runner.agents.python import driver
from container_runner.box import carried, passwd, script
from container_runner.config import paths
from container_runner.gateway import forwarder
from container_runner.workspace.patch import PATCH
from container_runner.workspace.way_in import IN
from container_runner.workspace.way_out import OUT

_LABEL: Final = re.compile(
    r"(--(?:label|filter=label)=container-runner\.)"
    r"(run|name|state|config|deadline|host|boot|pid-namespace|pid|started)=.*"
)
"""Those of our labels whose values differ between runs, machines or folders."""

_PLACE: Final = "--label=container-runner.place="
"""What tells where the workspace is, if it is not at /workspace."""

_NAMES: Final = re.compile(rf"/{passwd.FOLDER}/[0-9a-f]{{32}}/[0-9a-f]{{64}}$")
"""Where the names of an image are kept."""

_RUN: Final = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_NAME: Final = re.compile(r"\b(container-runner-[A-Za-z0-9_.-]+)-[0-9a-f]{12}\b")


def stable(command: Sequence[str]) -> tuple[str, ...]:
    """One of a plan's commands, with a word in the place of all that differs between runs and machines.

    These words are in it: RUN for the run's id, WORKSPACE and STATE for the two folders, USER for the agent's uid and
    gid, SEAL, GUEST, KEEPER, JOIN, FEED, OPEN, IN, PATCH, OUT, DRIVER, PICK, PERL, PYTHON or NODE for a script of
    ours, and for a label's value the label's name in capitals.
    The names of an image that the state folder knows (see `box.passwd`) are left out: another machine does not know
    them, or has users that need none.
    What is left is what the configuration, the options and the version of this package say. It can be compared, and
    not be run.
    """
    folders = _folders(command)
    words = (word for word in command[1:] if not _NAMES.search(_fields(word).get("src", "")))
    return tuple(_stable(word, folders) for word in (PurePosixPath(command[0]).name, *words))


def stable_words(command: Sequence[str]) -> tuple[str, ...]:
    """An agent's command, likewise."""
    return tuple(_stable(word, []) for word in command)


def pretty(command: Sequence[str]) -> str:
    """A command for a POSIX shell, with each word behind the verb on a line of its own."""
    head, rest = command[:2], command[2:]
    return " \\\n  ".join([shlex.join(head), *map(shlex.quote, rest)])


@functools.cache
def _scripts() -> dict[str, str]:
    """The word for each script of ours."""
    in_kept = {getattr(script, name): name for name in ("SEAL", "GUEST", "KEEPER", "JOIN", "FEED")}
    ways_out = zip(forwarder.scripts(), ("PERL", "PYTHON", "NODE"), strict=True)
    carrying = {carried.OPEN: "OPEN", IN: "IN", PATCH: "PATCH", OUT: "OUT"}
    return {**in_kept, **carrying, driver(): "DRIVER", forwarder.PICK: "PICK", **dict(ways_out)}


def _folders(command: Sequence[str]) -> list[tuple[str, str]]:
    """Sources of mounts, and what stands for them, the longest first."""
    found: dict[str, str] = {}
    places = (word.removeprefix(_PLACE) for word in command if word.startswith(_PLACE))
    place = next(places, paths.WORKSPACE)
    for word in command:
        fields = _fields(word)
        source, target = (fields.get(name, "") for name in ("src", "dst"))
        if source and target == place:
            found[source] = "WORKSPACE"
        elif f"{target}/".startswith(f"{paths.SESSIONS}/") and "readonly" not in fields:  # that is a login's file
            sessions = source.removesuffix(target[len(paths.SESSIONS) :])
            found[str(PurePosixPath(sessions).parents[1])] = "STATE"
    return sorted(found.items(), key=lambda item: -len(item[0]))


def _fields(word: str) -> dict[str, str]:
    """What a --mount says, which is CSV."""
    kind, _, text = word.partition("=")
    fields = next(csv.reader([text])) if kind == "--mount" else []
    return {name: value for name, _, value in (field.partition("=") for field in fields)}


def _stable(word: str, folders: list[tuple[str, str]]) -> str:
    if word in _scripts():
        return _scripts()[word]
    if label := _LABEL.fullmatch(word):
        return f"{label[1]}{label[2]}={label[2].upper()}"
    if word.startswith("--user="):
        return "--user=USER"
    fields = _fields(word)
    for folder, name in folders:
        if f"{fields.get('src')}/".startswith(f"{folder}/"):
            fields["src"] = f"{name}{fields['src'][len(folder) :]}"
            return "--mount=" + ",".join(f"{key}={value}" if value else key for key, value in fields.items())
    return _NAME.sub(r"\1-RUN", _RUN.sub("RUN", word))
