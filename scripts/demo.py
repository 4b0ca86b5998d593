"""`make demo`: finds an engine that runs containers here, and hands over to `container-runner demo`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from tests.integration.engines import docker_answers, podman_needs
from tests.integration.images import Unavailable, add_tiny, import_image

DEMO = Path(".demo")
PROGRAM = ".venv/bin/container-runner"


def main() -> NoReturn:
    DEMO.mkdir(exist_ok=True)
    try:
        environment = engine()
    except Unavailable as reason:
        sys.exit(f"The demo can not run: {reason}.")
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    print(f"The engine that was found here; type this first in a shell of yours:\n\nexport {exports}\n", flush=True)
    command = [PROGRAM, "demo", f"--workspace={DEMO / 'workspace'}"]
    os.execve(PROGRAM, command, {**os.environ, **environment})


def engine() -> dict[str, str]:
    """The variables that container-runner needs to work with the engine of this machine.

    Raises:
        Unavailable: there is none.
    """
    if docker_answers(os.environ):
        return {"CONTAINER_RUNNER_ENGINE": "docker"}
    if shutil.which("podman"):
        conf, image = (DEMO / "containers.conf").resolve(), "container-runner/demo"
        import_image("podman", image, add_tiny)
        environment = {"CONTAINER_RUNNER_ENGINE": "podman"}
        return environment | {"CONTAINERS_CONF": str(conf)} if podman_needs(conf, "podman", image) else environment
    msg = "there is no container engine: install podman (on Debian: apt-get install podman) or docker"
    raise Unavailable(msg)


if __name__ == "__main__":
    main()
