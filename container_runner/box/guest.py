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
    """The agent's exit code, or that of a setup that failed, if our script lived to see it."""

    step: str | None = None
    """What came last, if it was not the agent: "setup", which failed, or "check"."""

    step_code: int | None = None
    """The exit code of that."""

    @classmethod
    def parse(
        cls, stderr: bytes, run: str, token: str, *, end_line: bytes = b"", exit_code: int | None = None
    ) -> tuple[Report, bytes]:
        """Split *stderr* into the report on a run and what the agent wrote, or the step that came last.

        A line on stderr can be lost, where an engine has not read it when the exec ends, so what is worth knowing
        is said twice.

        Args:
            end_line: the last line of stdout, if it has come.
            exit_code: that of our script, if it started no agent.
        """
        stderr += end_line
        said: dict[str, list[str]] = {}
        ends: dict[str, int] = {}
        line = re.compile(rb"container-runner: ([a-z0-9-]+) (?:%s|%s)\b([^\n]*)\n?" % (run.encode(), token.encode()))
        for found in line.finditer(stderr):
            said[word := found[1].decode()] = found[2].decode("utf-8", "replace").split()
            ends[word] = found.end()
        code = said.get("ended", [])[:1]
        step = next((word for word in said.get("ended", [])[1:2] if word in STEPS), None)
        refusal = next((word for word in REFUSALS if word in said), _BY_CODE.get(exit_code))
        report = cls(
            refusal=refusal,
            detail=tuple(said.get(refusal or "", ())),
            oom_kills=_number(said.get("oom", ())) or 0,
            ended=0 if step == "check" else _number(code),
            step=step,
            step_code=_number(code) if step else None,
        )
        return report, line.sub(b"", stderr[ends.get(step, 0) if step else 0 :])


STEPS: Final = ("setup", "check")
"""What may come before and after an agent's own work."""

REFUSALS: Final = (
    "elsewhere",
    "missing",
    "other-sh",
    "unsealed",
    "mounts",
    "nameless",
    "no-command",
    "not-executable",
    "prompt-lost",
)

_BY_CODE: Final[Mapping[int | None, str]] = {
    script.EXIT_NO_COMMAND: "no-command", script.EXIT_NOT_EXECUTABLE: "not-executable"
}  # fmt: skip


def _number(words: Sequence[str]) -> int | None:
    return int(words[0]) if len(words) == 1 and re.fullmatch("[0-9]{1,9}", words[0]) else None


GO: Final = b"\n"
"""What an agent whose gateway is started meanwhile waits for, in front of its prompt."""


def header(
    prompt: bytes,
    *,
    token: str,
    grace: int,
    mounts: Sequence[str],
    kernel: str,
    other_mounts: bool,
    proof: str = "",
    uid: str = "",
    values: Mapping[str, str],
    files: Mapping[str, str] = MappingProxyType({}),
    settings: Mapping[str, str] = MappingProxyType({}),
    setup: str = "",
    check: str = "",
    live: bool = False,
    gated: bool = False,
    exact: bool = False,
    command: Iterable[str] = (),
    place: str = paths.WORKSPACE,
) -> bytes:
    """What GUEST gets on stdin in front of the lease: a number of lines, lines of shell, and the prompt.

    Args:
        token: letters and digits that nobody else knows.
        grace: seconds between TERM and KILL.
        mounts: see `ContainerMounts.in_kernel`.
        kernel: the boot id of the kernel whose devices and paths they name; another one's are not compared.
        other_mounts: whether there may be more below their targets.
        proof: a path at which there must be something; "": none.
        uid: one that must have a line in /etc/passwd, if there can be one; "": none.
        values: variables of the agent's.
        files: what is written into the agent's HOME where it is not there yet, by the files' names.
        settings: what is written in any case, by the files' paths.
        setup: a command for the shell that comes before the agent; "": none.
        check: likewise one that comes after it.
        live: whether the agent's stdin is what FEED carries, and not the prompt.
        gated: whether GO is waited for: the prompt is left out, and comes behind that.
        exact: whether our lines on stdout begin where the agent has left off, in the middle of a line too, so that
            nothing is added to what it said.
        place: where the agent starts, if there is such a folder.
        command: the program and its arguments, unless they are GUEST's own arguments.
    """
    tops = {line.split(" ")[0]: None for line in mounts if line.split(" ")[1] != "*"}
    fields = {
        "token": token,
        "grace": str(grace),
        "size": str(len(prompt)),
        "place": place,
        "kernel": kernel,
        "others": "yes" if other_mounts else "",
        "proof": proof,
        "uid": uid,
        "number": str(len(tops)),
        "tops": "\n".join(tops),
        "mounts": "".join(f"\n{line}" for line in mounts) + "\n",
        "files": "\n".join(
            [
                *(_written(f"{paths.HOME}/{name}", text, "[ -e {} ] ||") for name, text in files.items()),
                # In a kept container the last run's agent has left there what it likes.
                *(_written(path, text, "rm -rf {};") for path, text in settings.items()),
            ]
        ),
        "setup": setup,
        "check": check,
        "variables": "\n".join(f"command export {name}={shlex.quote(value)}" for name, value in values.items()),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in fields.items()]
    if live:
        lines.append("live=yes")
    if gated:
        lines.append("gated=yes")
    if exact:
        lines.append("gap=")
    if words := list(command):
        lines.append(f"set -- {shlex.join(words)}")
    text = "\n".join([*lines, ""])
    return f"{text.count(chr(10))}\n{text}".encode("utf-8", "surrogateescape") + (b"" if gated else prompt)


def _written(path: str, text: str, before: str) -> str:
    """A line of shell that writes a file; *before* stands in front of it, with the path for {}."""
    quoted = shlex.quote(path)
    return f"{before.format(quoted)} printf %s {shlex.quote(text)} >{quoted}"


INTERRUPT: Final = b"int\n"
"""What is written on the lease to interrupt the agent."""


OURS: Final = b"container-runner: "
"""How each of our lines begins."""


def our_lines(started: bytes) -> re.Pattern[bytes]:
    """Our lines in an agent's output, wherever on a line they begin.

    Args:
        started: the one that says that it has started, which has the token.
    """
    token = started.split()[2]
    return re.compile(rb"%b[a-z-]+ %b\b[^\n]*\n" % (OURS, re.escape(token)))


def up_line(run: str) -> bytes:
    """How the line of stderr begins with which a container that waits for its header says that it is there.

    It may yet refuse, as an image that lacks a tool does. Nothing of the agent's uid is to be started in it until it is
    ready.
    """
    return f"container-runner: up {run}".encode()


def ready_line(run: str) -> bytes:
    """How the line of stderr begins with which a container of a pool says that it waits for its header."""
    return f"container-runner: ready {run}".encode()


def started_line(token: str) -> bytes:
    """How the line of stderr begins that divides the engine's failures from the agent's."""
    return f"container-runner: started {token}".encode()


def check_line(token: str) -> bytes:
    """How the line of stdout begins behind which the agent says nothing more, and the check is at work."""
    return f"container-runner: check {token}".encode()


def feeding_line(run: str) -> bytes:
    """How the line of stderr begins with which FEED says that the agent gets what it is given from now on."""
    return f"container-runner: feeding {run}".encode()


def ended_line(token: str) -> bytes:
    """How the last line of stdout begins. What comes before it is all that the agent said."""
    return f"container-runner: ended {token} ".encode()
