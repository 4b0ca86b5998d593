"""Who the agent is in the container."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Final

import attrs

from container_runner.box.sources import SHARED
from container_runner.config.container import ContainerConfig
from container_runner.errors import ConfigError

FALLBACK: Final = (1000, 1000)
"""Who the agent is when the caller is root and the workspace is root's too."""


@attrs.frozen
class User:
    """A uid and a gid in the container. On rootless podman `--userns=keep-id` makes them the caller's own."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"

    @property
    def for_pid1(self) -> User:
        """Another uid than the agent's, so that the agent can neither signal PID 1 nor write to its output."""
        return User(65533, 65533) if self.uid == 65534 else User(65534, 65534)

    @classmethod
    def of(cls, config: ContainerConfig, workspace: Path | None) -> User:
        """The configured user; else the caller; if that is root, the workspace's owner; if that is root, 1000:1000."""
        if config.uid_gid is not None:
            return cls(*config.uid_gid)
        if os.getuid() != 0:
            return cls(os.getuid(), os.getgid())
        if workspace is not None:
            owner = workspace.stat()
            if owner.st_uid != 0:
                return cls(owner.st_uid, owner.st_gid)
        return cls(*FALLBACK)

    def can_write(self, folder: Path) -> bool:
        """Whether the folder's permission bits let this user write, as far as the host can tell."""
        if self.uid in (0, os.getuid()):
            return self.uid == 0 or os.access(folder, os.W_OK | os.X_OK)
        return self._is_granted(folder.stat(), os.W_OK | os.X_OK)

    def can_read(self, file: Path) -> bool:
        """Whether the file's permission bits let this user read it."""
        found = file.stat()
        return self.uid == 0 or self._is_granted(found, os.R_OK)

    def _is_granted(self, found: os.stat_result, wanted: int) -> bool:
        """Whether the bits for the owner, the group or the others, whichever this user is, are all that is wanted."""
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid == self.gid else 0
        return found.st_mode >> shift & wanted == wanted


def check_workspace_access(user: User, workspace: Path, config: ContainerConfig) -> None:
    """Refuse a workspace that the agent could not write, before anything is started.

    Raises:
        ConfigError: whose text says what to type.
    """
    if config.workspace_mode == "ro" or user.can_write(workspace):
        return
    quoted = shlex.quote(str(workspace))
    chown = f"type: chown -R {user} {quoted} (git of root then wants a safe.directory)"
    allowed = (
        f"a folder that the agent's user {user} can write. Let it work on a copy with --carried, or only read with "
        "--workspace-mode=ro, or choose another user with --user, or "
        f"{f'make a folder in {quoted}' if str(workspace) in SHARED else chown}"
    )
    raise ConfigError("agent.workspace", str(workspace), allowed)
