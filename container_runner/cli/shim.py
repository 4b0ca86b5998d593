"""`container-runner shim`: an executable that stands for claude's, for programs that start that."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import anyio
import attrs
from cyclopts import Parameter

from container_runner.agents import ClaudeRuntime
from container_runner.agents.packages import PACKAGES
from container_runner.box.translator import Translator, in_container
from container_runner.box.words import in_the_box
from container_runner.cli.flags import ConfigFlags, RunFlags, prepare, split_words
from container_runner.cli.options import ExecuteFlags, spelled
from container_runner.cli.relay import Relay, check_reach
from container_runner.config.laws import NOT_SHOWN
from container_runner.config.tiers import Effective
from container_runner.errors import ConfigError
from container_runner.folders import expanded

MARK: Final = b"#!/bin/sh\n# Written by container-runner shim.\n"
"""How a file begins that may be written over."""

GRACE: Final = 2
"""Seconds that claude gets to stop, where no `--grace` is said. The SDKs wait for 5 until they kill what they started,
and in that time the container is to be gone too."""

PASSED_ON: Final = (
    "CLAUDE_AGENT_SDK_CLIENT_APP",
    "CLAUDE_AGENT_SDK_VERSION",
    "CLAUDE_CODE_ENABLE_SDK_FILE_CHECKPOINTING",
    "CLAUDE_CODE_ENTRYPOINT",
    "CLAUDE_CODE_SDK_READS_SESSION_STATE",
    "TRACEPARENT",
    "TRACESTATE",
)
"""The variables by which an SDK tells claude what it is. All others of its environment stay on this machine."""


def shim(
    kind: str,
    /,
    *words: str,
    install: Path | None = None,
    installed: Annotated[Path | None, Parameter(show=False)] = None,
    parent: Annotated[int | None, Parameter(show=False)] = None,
    flags: RunFlags | None = None,
    more: ExecuteFlags | None = None,
    box: ConfigFlags | None = None,
) -> int:
    """Stand for claude.

    Args:
        kind: Whose command it stands for: claude.
        words: The arguments of that command, behind --
        install: The folder in which the executable is written. The other flags are kept in it.
        installed: The executable that this is called by.
        parent: The process that has called that, with which it ends.
    """
    flags = flags or RunFlags()
    if kind != "claude":
        raise ConfigError("kind", kind, "claude; an editor gets another agent by `container-runner acp`")
    if install is not None:
        return _install(install, words, flags, more, box)
    if words in (("-v",), ("--version",)):
        print(f"{PACKAGES['claude'].version} (Claude Code)")
        return 0
    _check(installed, flags)
    if sys.stdin.isatty() and not {"-p", "--print"} & {*words}:
        told = "the shim has no terminal for claude; talk with it by `container-runner chat`"
        raise ConfigError("stdin", "a terminal", "a pipe or a file", told=told)
    more = more or ExecuteFlags()
    more = attrs.evolve(more, grace=GRACE if more.grace is None else more.grace)
    runner, options = prepare("", flags, more, box, _runtime)
    check_reach(runner, options)
    taken, _ = in_container(options, runner.config, runner.runtime)
    assert isinstance(runner.runtime, ClaudeRuntime)  # noqa: S101  see _runtime
    argv = runner.runtime.given(taken, list(in_the_box(words, Translator.of(options.agent, runner.config))))
    environ = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return anyio.run(_Claude(runner, options, parent, argv=argv, env=environ, exact=True).run)


class _Claude(Relay):
    """The claude in the box."""

    def interrupt(self) -> None:
        """SIGINT ends a turn, and claude with it: it knows how."""
        if self.pump is not None:
            self.pump.interrupt()


def _runtime(flags: RunFlags, found: Effective) -> ClaudeRuntime:
    """claude, by the name that it has in the image."""
    if found.agent_kind != "claude" or flags.python is not None or flags.acp is not None:
        raise ConfigError("agent_kind", flags.python or flags.acp or found.agent_kind, "claude")
    words = split_words("--command", "claude" if flags.command is None else flags.command)
    if len(words) != 1:
        raise ConfigError("--command", flags.command, "the name or path of claude in the image")
    return ClaudeRuntime(words[0])


def _check(installed: Path | None, flags: RunFlags) -> None:
    """See that the agent can not write what is started outside of its box."""
    workspace = flags.workspace.expanduser().resolve()
    if installed is not None and installed.resolve().is_relative_to(workspace):
        told = f"the agent could write {installed}, which lies in its workspace {workspace}; install it elsewhere"
        raise ConfigError("--install", str(installed), "a folder outside of the workspaces", told=told)


def _install(
    folder: Path, words: Sequence[str], flags: RunFlags, more: ExecuteFlags | None, box: ConfigFlags | None
) -> int:
    """Write the executable.

    Raises:
        ConfigError: something else lies there, or a flag can not be kept.
    """
    for name, given in (("words", words), ("--env", None if box is None else box.env)):
        if given:
            told = f"{name} can not be kept in the executable; --env has a place in the configuration file"
            raise ConfigError(name, NOT_SHOWN, "left out", told=told)
    if flags.workspace != RunFlags().workspace:
        told = "--workspace is the folder in which a program starts claude; leave it out"
        raise ConfigError("--workspace", str(flags.workspace), "left out", told=told)
    flags = attrs.evolve(flags, config=_absolute(flags.config), state_dir=_absolute(flags.state_dir))
    target = expanded(folder, "--install").absolute() / "claude"
    prepare("", flags, more, box, _runtime)  # what is wrong with the flags is said now, and not by each call
    if os.path.lexists(target) and not _is_ours(target):
        told = f"{target} is there, and was not written by container-runner: remove it, or choose another folder"
        raise ConfigError("--install", str(target), "a folder without a file claude", told=told)
    python = [sys.executable, "-P", "-m", "container_runner"]  # -P: nothing is imported from the current folder
    command = [*python, "shim", "claude", f"--installed={target}", *spelled(flags, more, box)]
    _write(target, MARK + f'exec {shlex.join(command)} --parent=$PPID -- "$@"\n'.encode("utf-8", "surrogateescape"))
    print(target)
    return 0


def _absolute(path: Path | None) -> Path | None:
    return path and expanded(path, "path").absolute()


def _is_ours(target: Path) -> bool:
    if target.is_symlink() or not target.is_file():
        return False
    with target.open("rb") as file:
        return file.read(len(MARK)) == MARK


def _write(target: Path, content: bytes) -> None:
    """Write an executable, so that whoever starts it finds the old one or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=".claude-")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        Path(name).chmod(0o755)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink()
        raise
