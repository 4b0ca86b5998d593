"""A `docker` for tests and recordings that runs the agent on this machine, with no container around it.

It is a program, so that the command line can be tried as a process at a terminal. It answers as an engine where
everything goes well, and keeps the promise that matters: when the lease ends, the agent is stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

AGENT = Path(__file__).with_name("images") / "scripted-agent"


def write(folder: Path, agent: Path = AGENT) -> Path:
    """Write the engine into *folder*: a program that runs *agent* for `claude`.

    Returns:
        Its path, for --engine. It logs its commands in `folder/calls`, one JSON list a line.
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
    elif words[0] == "run":
        name = next(word.partition("=")[2] for word in words if word.startswith("--name="))
        mounts = (re.search(r"\bsrc=([^,]+),dst=/workspace(,|$)", word.replace("source=", "src=")) for word in words)
        (folder / name).write_text(next((mount[1] for mount in mounts if mount), "/"))
        print("f" * 64)
    elif words[0] == "inspect":
        print("[]")
    elif words[:2] == ["exec", "--interactive"]:
        return play(folder, agent, words)
    return 0


def play(folder: Path, agent: str, words: list[str]) -> int:
    name = words[words.index("--") + 1]
    at = next(index for index, word in enumerate(words) if "\n" in word) + 2
    run, _, size, grace, program, *arguments = words[at:]
    prompt = sys.stdin.buffer.read(int(size))
    print(f"container-runner: started {run} {os.getpid()}", file=sys.stderr, flush=True)
    process = subprocess.Popen(
        [agent if program == "claude" else program, *arguments],
        stdin=subprocess.PIPE,
        cwd=(folder / name).read_text(),
        start_new_session=True,
    )
    threading.Thread(target=watch, args=(process, run, float(grace)), daemon=True).start()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # an agent need not read its prompt
        process.stdin.write(prompt)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    code = process.wait()
    code = 128 - code if code < 0 else code
    print(f"container-runner: ended {run} {code}", file=sys.stderr, flush=True)
    return code


def watch(process: subprocess.Popen[bytes], run: str, grace: float) -> None:
    """Stop the agent when the lease ends."""
    while os.read(0, 4096):
        pass
    for number, word in ((signal.SIGTERM, "term"), (signal.SIGKILL, "kill")):
        with contextlib.suppress(OSError):  # who started us may be dead
            print(f"container-runner: stop {run} {word}", file=sys.stderr, flush=True)
        os.killpg(process.pid, number)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            continue
        return


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
