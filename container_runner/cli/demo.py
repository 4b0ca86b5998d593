"""`container-runner demo`: a whole run, with an agent that needs no account and an image that needs no registry."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import Parameter

from container_runner.box.sources import SHARED, resolve_workspace
from container_runner.cli.containers import EngineFlags, JsonFlag, open_engine
from container_runner.cli.text import clean
from container_runner.errors import ConfigError
from container_runner.folders import expanded
from container_runner.options import Agent

GREETING = "greeting.txt"
BEFORE = "Helo wrold\n"


def demo(
    *,
    workspace: Annotated[Path, Parameter(alias="-w")] = Path("container-runner-demo"),
    json: JsonFlag = False,
    flags: EngineFlags | None = None,
) -> int:
    """Show a run: make a small image of files of this machine, and let a scripted agent edit a file.

    Args:
        workspace: The folder that the agent works on; it is made.
        json: Print the run's messages as JSON, and nothing else.
    """
    from container_runner.testing.scripted import IMAGE, import_scripted

    flags = flags or EngineFlags()
    greeting = _greeting_in(expanded(workspace, "--workspace"))
    engine = anyio.run(open_engine, flags)
    import_scripted(engine.binary, environ=engine.environ)
    box = [f"--workspace={workspace}", f"--image={IMAGE}", "--credentials=none"]  # this agent needs no login
    box += [f"--{name}={value}" for name in ("engine", "config", "profile") if (value := getattr(flags, name))]
    words = ["run", f"edit {GREETING} Hello, world!", *box]
    if json:
        return _run([*words, "--json"])
    print(f"{greeting} says: {greeting.read_text()}\n$ {_spelled(words)}", flush=True)
    if code := _run(words):
        return code
    print(f"\nNow it says: {clean(greeting.read_text())}")
    print("See who the agent is in its container, and what it can not do:\n")
    print(_spelled(["run", "sh id\nsh grep CapBnd /proc/self/status\nsh touch /etc/passwd", *box]))
    print("\nWith claude, and ANTHROPIC_API_KEY set:\n")
    print(_spelled(["image", "build", "claude", *box[3:]]))
    claude = "--image=container-runner/claude"
    print(_spelled(["run", f"Translate {GREETING} into French.", box[0], claude, *box[3:]]))
    return 0


def _greeting_in(folder: Path) -> Path:
    """The file that the agent edits, as it is before that.

    Raises:
        ConfigError: the folder has other things in it, or is not to be given to an agent.
    """
    greeting = folder / GREETING
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if str(resolve_workspace(Agent(name="demo", workspace=folder))) in SHARED:
            raise ConfigError(
                "agent.workspace", str(folder), "a folder of the agent's own, and none that is everybody's"
            )
        if any(entry.name != GREETING for entry in folder.iterdir()):
            raise ConfigError("agent.workspace", str(folder), "an empty folder, or one that is not there yet")
        greeting.unlink(missing_ok=True)  # it may be a link, or the agent's
        greeting.write_text(BEFORE)
        if os.geteuid() == 0:  # an agent does not run as root, so root's files are not its to change
            for path in (folder, greeting):
                os.chown(path, 1000, 1000)
    except ConfigError as error:
        raise error.called("--workspace") from None
    except OSError as error:
        told = f"--workspace {error.filename}: {(error.strerror or 'it can not be written').lower()}"
        raise ConfigError("--workspace", str(folder), "a folder that can be written", told=told) from None
    return greeting


def _run(words: list[str]) -> int:
    """Run one of our commands, as it would be typed."""
    from container_runner.cli import run_command

    before = sys.stdin
    with open(os.devnull) as sys.stdin:  # noqa: PTH123  what is piped in is for nobody
        code = run_command(words)
    sys.stdin = before
    return code


def _spelled(words: list[str]) -> str:
    """A command of ours as it is typed into a shell."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return shlex.join([sys.executable, "-m", "container_runner", *words])
    found = shutil.which(program.name)
    name = program.name if found is not None and program.exists() and program.samefile(found) else str(program)
    return shlex.join([name, *words])
