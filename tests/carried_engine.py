"""A `docker` for tests of carried workspaces: containers are processes of this machine, volumes are folders.

It refuses an overlay. What a run does to a volume, and what comes out of it, is real.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO


def write(folder: Path) -> Path:
    """Write the engine into *folder*, and return its path, for --engine.

    It logs its commands in `folder/calls`, one JSON list a line. A file `folder/cut` has the way out end after as many
    bytes as it says, as if the container were killed; it is gone then. A file `folder/stuck` has it fail every time,
    and a file `folder/hangs` say nothing for ever. A file `folder/keeps` has it remove no volume.
    """
    (folder / "volumes").mkdir(parents=True)
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" "{folder}" "$@"\n')
    program.chmod(0o755)
    return program


CLAUDE = """#!/bin/sh
session=one
for word; do case $word in --resume=*) session=${word#--resume=};; --fork-session) session=fork;; esac; done
printf '{"type":"system","subtype":"init","session_id":"%s","model":"m","tools":[]}\\n' $session
sh -s
printf '{"type":"result","subtype":"success","is_error":false,"session_id":"%s","result":"done","num_turns":1,' $session
printf '"duration_ms":1,"duration_api_ms":1,"total_cost_usd":0,"usage":{}}\\n'
"""


def write_claude(folder: Path) -> Path:
    """An agent with sessions that runs its prompt: `one`, the one that is resumed, or of a fork `fork`."""
    program = folder / "claude"
    program.write_text(CLAUDE)
    program.chmod(0o755)
    return program


def calls(folder: Path) -> list[list[str]]:
    """What the engine in *folder* was asked, oldest first."""
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def main(folder: Path, words: list[str]) -> int:
    with (folder / "calls").open("a") as log:
        log.write(json.dumps(words) + "\n")
    match words:
        case ["--version"]:
            print("Docker version 28.2.2, build e6534b4")
        case ["volume", verb, *_]:
            return volume(folder, verb, words[-1], words)
        case ["run", "--rm", *_]:
            return run(folder, words)
        case ["exec", *_]:
            container = words[words.index("--") + 1]
            if not (folder / container).exists():
                return fail("Error: No such container")
            return script(folder, Path((folder / container).read_text()), words)
        case ["rm", *_]:
            with contextlib.suppress(FileNotFoundError):
                (folder / words[-1]).unlink()
        case ["inspect", *_]:
            print("[]")
        case _:
            pass
    return 0


def fail(message: str, code: int = 1) -> int:
    print(message, file=sys.stderr)
    return code


def volume(folder: Path, verb: str, name: str, words: list[str]) -> int:
    place, labels = folder / "volumes" / name, folder / "volumes" / f"{name}.json"
    if verb == "create":
        place.mkdir()
        labels.write_text(json.dumps(dict(word.removeprefix("--label=").split("=", 1) for word in words[2:-1])))
        print(name)
    elif not place.exists():
        return fail(f"Error response from daemon: get {name}: no such volume")
    elif verb == "inspect":
        print(json.dumps([{"Name": name, "Labels": json.loads(labels.read_text()) if labels.exists() else None}]))
    elif verb == "rm" and (folder / "keeps").exists():
        return fail(f"Error response from daemon: remove {name}: volume is in use")
    elif verb == "rm":
        shutil.rmtree(place)
        labels.unlink(missing_ok=True)
    return 0


def script(folder: Path, place: Path, words: list[str]) -> int:
    """One of our scripts on a volume's folder."""
    at = words.index("-c", words.index("--"))
    said = words[at + 1 :]
    text, _, target, *more = said[2:] if said.count("sh") == 2 else said  # a helper's is held by another
    within = target.removeprefix("/workspace")
    if (folder / "stuck").exists() and "xargs" in text:
        return fail("Error response from daemon: it is stuck")
    if (folder / "hangs").exists() and "xargs" in text:
        signal.pause()
    process = subprocess.Popen(["sh", "-c", text, "sh", f"{place}{within}", *more], stdout=subprocess.PIPE)
    assert process.stdout is not None
    left = int((folder / "cut").read_text()) if (folder / "cut").exists() and "xargs" in text else None
    while data := os.read(process.stdout.fileno(), 65536 if left is None else min(65536, left)):
        os.write(1, data)
        if left is not None and (left := left - len(data)) <= 0:
            process.kill()
            process.wait()
            (folder / "cut").unlink()
            os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
            return 137
    return process.wait()


def run(folder: Path, words: list[str]) -> int:
    name = next(word.partition("=")[2] for word in words if word.startswith("--name="))
    if any("volume-opt=type=overlay" in word for word in words):
        return fail("docker: Error response from daemon: failed to mount local volume: invalid argument", 125)
    source = next(found[1] for word in words if (found := re.search(r"\bsrc=([^,]+),dst=/workspace(,|$)", word)))
    place = folder / "volumes" / source
    if not place.exists():  # an engine makes it, with the labels that it is told
        place.mkdir()
        labels = dict(found.split("=", 1) for word in words for found in re.findall(r",volume-label=([^,]+)", word))
        place.with_name(f"{source}.json").write_text(json.dumps(labels))
    command = words[words.index("--") + 1 :]
    if command[3] == "sh":
        return script(folder, place, words)
    (folder / name).write_text(str(place))
    (folder / "pid").write_text(str(os.getpid()))
    code = play(folder, place, command)
    (folder / name).unlink(missing_ok=True)
    return code


def play(folder: Path, place: Path, command: list[str]) -> int:
    """Do what our script does: wait for header and prompt, run the agent in the volume, stop it when the lease ends."""
    stdin: IO[bytes] = sys.stdin.buffer
    say(f"ready {command[3]}")
    first = stdin.readline()
    if not first:
        return 70
    header = b"".join(stdin.readline() for _ in range(int(first)))
    text = header.decode("utf-8", "surrogateescape")
    fields = dict(word.partition("=")[::2] for word in shlex.split(text.partition("\nset -- ")[0]))
    agent = shlex.split(text.partition("\nset -- ")[2])
    prompt = stdin.read(int(fields["size"]))
    say(f"started {fields['token']}")
    process = subprocess.Popen(agent, stdin=subprocess.PIPE, cwd=place, start_new_session=True)
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(prompt)

    def lease() -> None:
        while stdin.readline():
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)

    watch = threading.Thread(target=lease, daemon=True)
    watch.start()
    code = process.wait()
    say(f"ended {fields['token']} {code % 256}")
    print(f"\ncontainer-runner: ended {fields['token']} {code % 256}", flush=True)
    watch.join()
    return 0


def say(line: str) -> None:
    print(f"container-runner: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
