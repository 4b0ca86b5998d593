"""Git's configuration: what the host's says of its person, and the one that the box gets.

The files are read here and not by git, which would obey them. What the box gets are values: who commits, which files
are never added, and what turns a file into what is committed. It is the box's *global* configuration, so a repository's
own wins over it, as on the host; variables such as GIT_AUTHOR_NAME or GIT_CONFIG_COUNT would win over both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from container_runner.config import paths
from container_runner.folders import read_regular

SYSTEM: Final = Path("/etc/gitconfig")

MOST_INCLUDES: Final = 10
"""How deep files may include each other, as with git."""

IGNORED: Final = ".gitignore-of-the-host"
"""The file in the box's HOME with what is never added."""

_SPACE = " \t\r\n"
_SECTION = re.compile(r'\[\s*([A-Za-z0-9.-]+)\s*(?:"((?:[^"\\]|\\.)*)"\s*)?\]')
_NAME = re.compile(r"([A-Za-z][A-Za-z0-9-]*)\s*(=|$|(?=[#;]))")
_ESCAPES = {"n": "\n", "t": "\t", "b": "\b"}
_TAKEN = re.compile(r"user\.(?:name|email)|filter\..+\.(?:clean|smudge|process)", re.DOTALL)


def parse(text: str) -> Iterator[tuple[str, str]]:
    """What a file says, in its order, as ("filter.lfs.clean", "git-lfs clean -- %f"). What is no such line is passed
    over."""
    section, lines = "", iter(text.removeprefix("\ufeff").split("\n"))
    for line in lines:
        rest = line.strip(_SPACE)
        if header := _SECTION.match(rest):
            below = "" if header[2] is None else "." + re.sub(r"\\(.)", r"\1", header[2])
            section, rest = header[1].lower() + below, rest[header.end() :].strip(_SPACE)
        if not (name := _NAME.match(rest)):
            continue
        rest = rest[name.end() :]
        while len(rest) - len(rest.rstrip("\\")) & 1:  # the line goes on
            rest = rest[:-1] + next(lines, "").rstrip(_SPACE)
        yield f"{section}.{name[1].lower()}", _value(rest) if name[2] == "=" else "true"


def read(file: Path) -> list[tuple[str, str]]:
    """What a repository's own file says; nothing if there is none, or a link in its place. What it includes is not
    followed, and a value that no path could be is left out."""
    try:
        text = read_regular(file).decode("utf-8", "surrogateescape")
    except OSError:
        return []
    return [(key, value) for key, value in parse(text) if "\0" not in value]


def for_submodule(text: str) -> str:
    """A submodule's configuration without `core.worktree`, which git finds by itself from the submodule's files.

    Where it is set, `git submodule update` sets it again, and so fails where it can not write. The text is left as it
    is if more than that would change.
    """
    less = re.sub(r"^[ \t]*worktree[ \t]*=.*\n?", "", text, flags=re.MULTILINE | re.IGNORECASE)
    kept = [(key, value) for key, value in parse(text) if key != "core.worktree"]
    return less if [*parse(less)] == kept else text


def box_files(environ: Mapping[str, str], git: Path | None) -> Mapping[str, str]:
    """The files of git's that the box gets in its HOME, by their names.

    Args:
        environ: the host's variables; HOME, XDG_CONFIG_HOME, GIT_CONFIG_GLOBAL and GIT_CONFIG_NOSYSTEM count.
        git: the workspace's git folder, which the host's configuration may ask for.
    """
    home = environ.get("HOME", "")
    said: dict[str, str] = {}
    for file in _files(environ, home):
        said.update(_said(file, git, home))
    settings = {key: value for key, value in said.items() if _TAKEN.fullmatch(key)}
    for driver in {key.rpartition(".")[0]: None for key in settings if key.startswith("filter.")}:
        # Where its program is not in the image, git would without this add a file as it is.
        settings[f"{driver}.required"] = "true"
        if f"{driver}.process" not in settings:
            settings = {f"{driver}.clean": "cat", f"{driver}.smudge": "cat", **settings}  # one of two is not enough
    # The box's agent is not always the owner of what is mounted, and the host's person has chosen that.
    settings["safe.directory"] = "*"
    found = {}
    xdg = environ.get("XDG_CONFIG_HOME") or f"{home}/.config"
    if ignored := _read(Path(_expand(said.get("core.excludesfile") or f"{xdg}/git/ignore", home))):
        found[IGNORED] = ignored
        settings["core.excludesfile"] = f"{paths.HOME}/{IGNORED}"
    return {**found, ".gitconfig": "".join(_line(key, value) for key, value in settings.items())}


def _files(environ: Mapping[str, str], home: str) -> list[Path]:
    """The host's own files, from the weakest on."""
    files = [] if environ.get("GIT_CONFIG_NOSYSTEM", "").lower() in ("1", "true", "yes", "on") else [SYSTEM]
    if own := environ.get("GIT_CONFIG_GLOBAL"):
        return [*files, Path(own)]
    xdg = environ.get("XDG_CONFIG_HOME") or f"{home}/.config"
    return [*files, Path(xdg, "git/config"), Path(home, ".gitconfig")] if home else files


def _said(file: Path, git: Path | None, home: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """What a file says, and the files that it includes."""
    for key, value in parse(_read(file)):
        condition = key.removeprefix("includeif.").removesuffix(".path")
        if key == "include.path" or (
            key == f"includeif.{condition}.path" and git is not None and _holds(condition, git, file, home)
        ):
            if depth < MOST_INCLUDES:
                yield from _said(file.parent / _expand(value, home), git, home, depth + 1)
        else:
            yield key, value


def _holds(condition: str, git: Path, file: Path, home: str) -> bool:
    """Whether "gitdir:PATTERN" holds for a git folder. Of the other conditions none does."""
    kind, _, pattern = condition.partition(":")
    if kind not in ("gitdir", "gitdir/i") or not pattern:
        return False
    if pattern.startswith("./"):
        pattern = f"{file.parent}/{pattern[2:]}"
    pattern = _expand(pattern, home)
    pattern = f"{'' if pattern.startswith('/') else '**/'}{pattern}{'**' if pattern.endswith('/') else ''}"
    kinds = {"**/": "(?:.*/)?", "/**": "/.*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|/\*\*\Z|\*|\?)", pattern)
    matched = re.compile("".join(kinds.get(part, re.escape(part)) for part in parts), re.IGNORECASE * (kind[-1] == "i"))
    return any(matched.fullmatch(str(path)) for path in (git, git.resolve()))


def _expand(path: str, home: str) -> str:
    return home + path[1:] if path.startswith("~/") and home else path


def _read(file: Path) -> str:
    """A file of the host's person, who may have made it a link; "" if it is not there or not to be read."""
    try:
        return read_regular(file.resolve()).decode("utf-8", "surrogateescape")
    except (OSError, RuntimeError, ValueError):
        return ""


def _value(text: str) -> str:
    """A value without its quotes, escapes, and comment."""
    said, end, quoted, left = "", 0, False, iter(text.strip(_SPACE))
    for char in left:
        if char == '"':
            quoted = not quoted
            end = len(said)
        elif char in "#;" and not quoted:
            break
        else:
            escaped = next(left, "") if char == "\\" else ""
            said += _ESCAPES.get(escaped, escaped) if char == "\\" else char
            end = len(said) if quoted or char not in _SPACE else end
    return said[:end]


def _line(key: str, value: str) -> str:
    """A section of its own for each setting, as "[filter "lfs"] clean = "..."."""
    section, _, rest = key.partition(".")
    below, _, name = rest.rpartition(".")
    escaped = re.sub(r'(["\\])', r"\\\1", below)
    value = re.sub(r'(["\\])', r"\\\1", value).replace("\n", "\\n")
    header = f'{section} "{escaped}"' if below else section
    return f'[{header}]\n\t{name} = "{value}"\n'
