"""What we say to our script in the container, and what it says to us."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import attrs

from container_runner.box import script
from container_runner.config import paths


@attrs.frozen(kw_only=True)
class Report:
    """What our script said on stderr, in lines with the run's id or its token. It tells what happened and permits
    nothing: what is said before the token is known, an image could say as well."""

    refusal: str | None = None
    """Why the agent was not started: one of `REFUSALS`, or None."""

    detail: tuple[str, ...] = ()
    """The tools that the image lacks, or the mount point that is not as planned."""

    oom_kills: int = 0
    """How many processes the kernel killed for their memory during the run."""

    ended: int | None = None
    """The agent's exit code, if our script lived to see it."""

    @classmethod
    def parse(
        cls, stderr: bytes, run: str, token: str, *, end_line: bytes = b"", exit_code: int | None = None
    ) -> tuple[Report, bytes]:
        """Split *stderr* into the report on a run and what the agent wrote.

        A line on stderr can be lost, where an engine has not read it when the exec ends, so what is worth knowing
        is said twice.

        Args:
            end_line: the last line of stdout, if it has come.
            exit_code: that of our script, if it started no agent.
        """
        stderr += end_line
        said: dict[str, list[str]] = {}
        line = re.compile(rb"container-runner: ([a-z0-9-]+) (?:%s|%s)\b([^\n]*)\n?" % (run.encode(), token.encode()))
        for word, rest in line.findall(stderr):
            said[word.decode()] = rest.decode("utf-8", "replace").split()
        refusal = next((word for word in REFUSALS if word in said), _BY_CODE.get(exit_code))
        report = cls(
            refusal=refusal,
            detail=tuple(said.get(refusal or "", ())),
            oom_kills=_number(said.get("oom", ())) or 0,
            ended=_number(said.get("ended", ())),
        )
        return report, line.sub(b"", stderr)


REFUSALS: Final = ("missing", "other-sh", "unsealed", "mounts", "no-command", "not-executable", "prompt-lost")

_BY_CODE: Final[Mapping[int | None, str]] = {
    script.EXIT_NO_COMMAND: "no-command", script.EXIT_NOT_EXECUTABLE: "not-executable"
}  # fmt: skip


def _number(words: Sequence[str]) -> int | None:
    return int(words[0]) if len(words) == 1 and re.fullmatch("[0-9]{1,9}", words[0]) else None


def header(
    prompt: bytes,
    *,
    token: str,
    grace: int,
    mounts: Sequence[str],
    kernel: str,
    other_mounts: bool,
    values: Mapping[str, str],
    files: Mapping[str, str] = MappingProxyType({}),
    command: Iterable[str] = (),
) -> bytes:
    """What GUEST gets on stdin in front of the lease: a number of lines, lines of shell, and the prompt.

    Args:
        token: letters and digits that nobody else knows.
        grace: seconds between TERM and KILL.
        mounts: see `ContainerMounts.in_kernel`.
        kernel: the boot id of the kernel whose devices and paths they name; another one's are not compared.
        other_mounts: whether there may be more below their targets.
        values: variables of the agent's.
        files: what is written into the agent's HOME where it is not there yet, by the files' names.
        command: the program and its arguments, unless they are GUEST's own arguments.
    """
    tops = {line.split(" ")[0]: None for line in mounts if line.split(" ")[1] != "*"}
    fields = {
        "token": token,
        "grace": str(grace),
        "size": str(len(prompt)),
        "kernel": kernel,
        "others": "yes" if other_mounts else "",
        "number": str(len(tops)),
        "tops": "\n".join(tops),
        "mounts": "".join(f"\n{line}" for line in mounts) + "\n",
        "files": "\n".join(
            f"[ -e {path} ] || printf %s {shlex.quote(text)} >{path}"
            for path, text in ((shlex.quote(f"{paths.HOME}/{name}"), text) for name, text in files.items())
        ),
        "variables": "\n".join(f"command export {name}={shlex.quote(value)}" for name, value in values.items()),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in fields.items()]
    if words := list(command):
        lines.append(f"set -- {shlex.join(words)}")
    text = "\n".join([*lines, ""])
    return f"{text.count(chr(10))}\n{text}".encode("utf-8", "surrogateescape") + prompt


def ready_line(run: str) -> bytes:
    """How the line of stderr begins with which a container of a pool says that it waits for its header."""
    return f"container-runner: ready {run}".encode()


def started_line(token: str) -> bytes:
    """How the line of stderr begins that divides the engine's failures from the agent's."""
    return f"container-runner: started {token}".encode()


def ended_line(token: str) -> bytes:
    """How the last line of stdout begins. What comes before it is all that the agent said."""
    return f"container-runner: ended {token} ".encode()
