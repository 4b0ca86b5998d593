"""Where things lie in the container, and how its processes are marked."""

from __future__ import annotations

from typing import Final

ROOT: Final = "/container-runner"
"""Everything of ours in the container lies below this path, which no image has."""

RUN_DIR: Final = f"{ROOT}/run"
"""A tmpfs for the lease and the prompt."""

HOME: Final = f"{ROOT}/home"
"""The agent's HOME, a tmpfs. A mount point that the image does not have is writable for every uid (mode 1777);
over a folder of the image the folder's own owner and mode would win."""

SESSIONS: Final = f"{ROOT}/sessions"
"""Where the agent's sessions folder is mounted."""

PYTHON: Final = f"{ROOT}/python"
"""Below it the folders are mounted from which a runtime written in Python may import."""

WORKSPACE: Final = "/workspace"
"""Where the workspace is mounted, and where the agent starts."""

MARK: Final = "CONTAINER_RUNNER_RUN"
"""The variable that the agent and all its children carry. It finds what left the agent's process group."""
