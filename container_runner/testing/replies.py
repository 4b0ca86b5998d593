"""What a played agent says, and to whom."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Lock
from typing import Any, Final, TypeAlias

import attrs

Wanted: TypeAlias = str | re.Pattern[str] | Callable[[str], object]
"""Which prompts: the one that is this text, those in which the pattern is found, or those that the function takes."""

SESSION: Final = "11111111-2222-4333-8444-555555555555"


@attrs.frozen(kw_only=True, eq=False)
class Reply:
    """A prepared run of an agent."""

    stdout: Callable[[str], bytes]
    """What it prints, given its prompt."""

    stderr: bytes = b""

    exit_code: int = 0

    hang: bool = False
    """Whether it then stays, silent, until it is stopped."""

    started: bool = True
    """Whether the agent starts at all; otherwise all of this is the engine's."""

    failed_step: str = ""
    """What fails instead of the agent: "setup", "check", or "" for nothing."""

    prompt: Wanted | None = None
    agent: str | None = None

    @property
    def is_for_anybody(self) -> bool:
        return self.prompt is None and self.agent is None

    def answers(self, agent: str | None, prompt: str) -> bool:
        """Whether it is for this prompt of this agent."""
        if self.agent is not None and self.agent != agent:
            return False
        if self.prompt is None or isinstance(self.prompt, str):
            return self.prompt in (None, prompt)
        found = self.prompt.search if isinstance(self.prompt, re.Pattern) else self.prompt
        return bool(found(prompt))


class Replies:
    """Prepared runs, each given away once, to whoever asks first. Any thread may ask."""

    def __init__(self) -> None:
        self._left: list[Reply] = []
        self._lock = Lock()

    def add(self, reply: Reply) -> None:
        """Prepare one more."""
        self._left.append(reply)

    def take(self, agent: str | None, prompt: str) -> Reply | None:
        """The first one that is for this agent or prompt, else the first that is for anybody; None if there is none."""
        with self._lock:
            fitting = [reply for reply in self._left if reply.answers(agent, prompt)]
            found = min(fitting, key=lambda reply: reply.is_for_anybody, default=None)
            if found is not None:
                self._left.remove(found)
            return found


def agent_of(command: Sequence[str]) -> str | None:
    """The agent whose container a command makes or uses, by the container's name."""
    for word in command:
        if match := re.fullmatch(r"(?:--name=)?container-runner-(.+)-[0-9a-f]{12}", word):
            return match[1]
    return None


def as_claude(
    text: str = "",
    *,
    session_id: str = SESSION,
    cost_usd: float | None = None,
    usage: Mapping[str, int] | None = None,
    structured_output: Any = None,
    error: str | None = None,
) -> bytes:
    """The lines that claude prints when it answers *text*.

    Args:
        usage: the numbers of tokens, as `{"input_tokens": 10, "output_tokens": 3}`.
        error: what went wrong, in claude's words; None if it succeeds.
    """
    answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    result = {
        "type": "result",
        "subtype": "success" if error is None else "error_during_execution",
        "is_error": error is not None,
        "result": text if error is None else "",
        "errors": [] if error is None else [error],
        "num_turns": 1,
        "session_id": session_id,
        "total_cost_usd": cost_usd,
        "usage": dict(usage or {}),
        "structured_output": structured_output,
    }
    return as_lines(
        [
            {"type": "system", "subtype": "init", "session_id": session_id, "model": "claude-fake"},
            {"type": "assistant", "message": answer, "session_id": session_id},
            {name: value for name, value in result.items() if value not in (None, {}, [])},
        ]
    )


def as_lines(lines: Iterable[Any]) -> bytes:
    """Lines of an agent: mappings as JSON, messages as the lines that they would be, text and bytes as they are."""
    return b"".join(_line(line) + b"\n" for line in lines)


def _line(line: Any) -> bytes:
    if isinstance(line, Mapping):
        line = json.dumps(line)
    if isinstance(line, str):
        return line.encode()
    return line if isinstance(line, bytes) else bytes(line.to_json())


def failure(kind: str) -> Reply:
    """A run that fails with an error of this kind, one of those in `FAILURES`."""
    exit_code, said, started = FAILURES[kind]
    if kind in ("setup_failed", "check_failed"):
        step = kind.partition("_")[0]
        stdout = as_claude() if step == "check" else b""
        return Reply(stdout=lambda _: stdout, stderr=said.encode(), exit_code=exit_code, failed_step=step)
    return Reply(stdout=lambda _: b"", stderr=said.encode(), exit_code=exit_code, started=started)


_DAEMON: Final = "docker: Error response from daemon: "

FAILURES: Final[Mapping[str, tuple[int, str, bool]]] = {
    "agent_failed": (1, "", True),
    "agent_killed": (137, "", True),
    "check_failed": (1, "1 failed", True),
    "command_not_executable": (72, "container-runner: not-executable {run}", False),
    "command_not_found": (71, "container-runner: no-command {run}", False),
    "engine": (125, f"{_DAEMON}something that nobody has heard before", False),
    "engine_argument": (125, "unknown flag: --no-such-flag", False),
    "engine_busy": (125, f"{_DAEMON}context deadline exceeded", False),
    "engine_permission": (125, "docker: permission denied while trying to connect to the Docker daemon socket", False),
    "engine_unreachable": (125, "docker: Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", False),
    "image_not_found": (125, f"{_DAEMON}No such image: some/image", False),
    "image_unsuitable": (127, f'{_DAEMON}exec: "sh": executable file not found in $PATH', False),
    "incomplete": (0, "", True),
    "mount": (125, f"{_DAEMON}invalid mount config: bind source path does not exist: /nowhere", False),
    "name_taken": (125, f'{_DAEMON}Conflict. The container name "/x" is already in use by container "c0ffee".', False),
    "network_not_found": (125, f"{_DAEMON}network nowhere not found", False),
    "out_of_memory": (137, "container-runner: oom {token} 1", True),
    "port": (125, f"{_DAEMON}Bind for 127.0.0.1:80 failed: port is already allocated", False),
    "pull_failed": (125, "docker: pull access denied for some/image, repository does not exist", False),
    "setup_failed": (1, "", True),
}
"""By the kind of error: what is exited with, what is said on stderr, and whether the agent had started.

In the text, {run} and {token} stand for the run's id and its secret token."""
