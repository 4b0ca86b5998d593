"""What `make demo` shows: an agent at work in a locked-down container, and the file that it changed.

The agent is a script that speaks claude's stream-json, in an image made from files of this machine, so that neither an
account nor a registry is needed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.integration.engines import docker_answers, podman_needs
from tests.integration.images import Unavailable, add_tiny, import_image

DEMO = Path(".demo")
WORKSPACE = DEMO / "workspace"
IMAGE = "container-runner/demo"
PROGRAM = ".venv/bin/container-runner"


def main() -> int:
    try:
        environment = prepare()
    except Unavailable as reason:
        print(f"The demo can not run: {reason}.", file=sys.stderr)
        return 1
    greeting = WORKSPACE / "greeting.txt"
    print(f"Before the run {greeting} says: {greeting.read_text()}", flush=True)
    box = [f"--workspace={WORKSPACE}", f"--image={IMAGE}", "--credentials=none"]  # this agent needs no login
    command = [PROGRAM, "run", "edit greeting.txt Hello, world!", *box]
    if code := run(command, environment):
        return code
    print(f"\nAfter it {greeting} says: {greeting.read_text()}")
    print("Type this next, to see who the agent is in its container, and what it can not do:\n")
    print(
        spelled(
            [*command[:2], "sh id\nsh grep CapBnd /proc/self/status\nsh touch /etc/passwd", *command[3:]], environment
        )
    )
    print("\nWith claude, and ANTHROPIC_API_KEY set:\n")
    print(spelled([PROGRAM, "image", "build", "claude"], environment))
    claude = [*command[:2], "Translate greeting.txt into French.", command[3], "--image=container-runner/claude"]
    print(spelled(claude, environment))
    return 0


def prepare() -> dict[str, str]:
    """Find an engine, make the image and the workspace.

    Returns:
        The variables that container-runner needs to work with that engine.

    Raises:
        Unavailable: there is no engine.
    """
    WORKSPACE.mkdir(parents=True, exist_ok=True)
    greeting = WORKSPACE / "greeting.txt"
    greeting.write_text("Helo wrold\n")
    if os.geteuid() == 0:  # an agent does not run as root, so root's files are not its to change
        for path in (WORKSPACE, greeting):
            os.chown(path, 1000, 1000)
    conf = (DEMO / "containers.conf").resolve()
    if docker_answers(os.environ):
        import_image("docker", IMAGE, add_tiny)
        return {"CONTAINER_RUNNER_ENGINE": "docker"}
    if shutil.which("podman"):
        import_image("podman", IMAGE, add_tiny)
        environment = {"CONTAINER_RUNNER_ENGINE": "podman"}
        return environment | {"CONTAINERS_CONF": str(conf)} if podman_needs(conf, "podman", IMAGE) else environment
    msg = "there is no container engine: install podman (on Debian: apt-get install podman) or docker"
    raise Unavailable(msg)


def run(command: list[str], environment: dict[str, str]) -> int:
    print(spelled(command, environment), flush=True)
    return subprocess.run(command, check=False, env={**os.environ, **environment}).returncode


def spelled(command: list[str], environment: dict[str, str]) -> str:
    """The command as it is typed into a shell."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), shlex.join(command)])


if __name__ == "__main__":
    sys.exit(main())
