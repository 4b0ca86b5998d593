"""A `docker` for tests and recordings that runs the agent on this machine, with no container around it.

It is a program, so that the command line can be tried as a process at a terminal. It answers as an engine where
everything goes well, and keeps the promise that matters: when the lease ends, the agent is stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

AGENT = Path(__file__).with_name("images") / "scripted-agent"


def write(folder: Path, agent: Path = AGENT) -> Path:
    """Write the engine into *folder*: a program that runs *agent* for `claude`.

    Returns:
        Its path, for --engine. It logs its commands in `folder/calls`, one JSON list a line, and keeps the header that
        the latest one got in `folder/header`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" "{folder}" "{agent}" "$@"\n')
    program.chmod(0o755)
    return program


def main(folder: Path, agent: str, words: list[str]) -> int:
    with (folder / "calls").open("a") as log:
        log.write(json.dumps(words) + "\n")
    if words[0] == "--version":
        print("Docker version 28.2.2, build e6534b4")
    elif words[:3] == ["run", "--rm", "--interactive"]:
        return play(folder, agent, words)
    elif words[0] == "inspect":
        print("[]")
    return 0


def play(folder: Path, agent: str, words: list[str]) -> int:
    """Do what our script does: take header and prompt, run *agent* in the workspace, stop it when the lease ends."""
    header = b"".join(sys.stdin.buffer.readline() for _ in range(int(sys.stdin.buffer.readline())))
    (folder / "header").write_bytes(header)
    fields = dict(word.partition("=")[::2] for word in shlex.split(header.decode("utf-8", "surrogateescape")))
    prompt = sys.stdin.buffer.read(int(fields["size"]))
    _, _, _, _, _, _, program, *arguments = words[words.index("--") + 1 :]
    mounts = (re.search(r"\bsrc=([^,]+),dst=/workspace(,|$)", word) for word in words)
    say(f"started {fields['token']}")
    process = subprocess.Popen(
        [agent if program == "claude" else program, *arguments],
        stdin=subprocess.PIPE,
        cwd=next((mount[1] for mount in mounts if mount), "/"),
        start_new_session=True,
    )
    lease = threading.Thread(target=watch, args=(process, float(fields["grace"])), daemon=True)
    lease.start()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # an agent need not read its prompt
        process.stdin.write(prompt)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    code = process.wait()
    code = 128 - code if code < 0 else code
    say(f"ended {fields['token']} {code}")
    print(f"\ncontainer-runner: ended {fields['token']} {code}", flush=True)
    lease.join()
    return 0


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # who started us may be dead
        print(f"container-runner: {line}", file=sys.stderr, flush=True)


def watch(process: subprocess.Popen[bytes], grace: float) -> None:
    """Stop the agent when the lease ends. As PID 1 the script ends it by its own end, and says no more."""
    while os.read(0, 4096):
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
