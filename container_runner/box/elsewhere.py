"""A box of an engine that does not see this machine's files: what it can not have, and how sessions get there and back.

Nothing of this machine is mounted there. The workspace is carried by a stream, the sessions folder is sent into a
folder in memory and fetched from it, and credentials are variables, or the gateway's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from container_runner.box.carried import work_exec_argv
from container_runner.box.mounts import MOUNTING, no_file_there
from container_runner.config import paths
from container_runner.config.container import ContainerConfig
from container_runner.options import Agent

SEND: Final = 'cd "$1" && exec tar -xof -'
"""Unpacks what it gets: `sh -c SEND sh FOLDER`."""

FETCH: Final = """\
cd "$1" && shift || exit 71
for name; do [ ! -e "$name" ] || tar -cf - "$name" || exit 72; done
"""
"""Tells what is in a folder by these names, each in an archive of its own: `sh -c FETCH sh FOLDER NAME...`."""


def config_there(config: ContainerConfig, agent: Agent) -> ContainerConfig:
    """The box that stands for *config* with an engine that does not see this machine's files.

    Raises:
        ConfigError: something in it can not be had there.
    """
    for field in ("volumes", "devices", "ports"):
        if value := getattr(config, field):
            raise no_file_there(field, [str(getattr(it, "source", it)) for it in value], "empty")
    if any(word.startswith(MOUNTING) for word in config.extra_args):
        raise no_file_there("extra_args", list(config.extra_args), "without a mount")
    if agent.add_dirs:
        raise no_file_there("agent.add_dirs", list(agent.add_dirs), "empty")
    if not config.ephemeral:
        raise no_file_there("ephemeral", config.ephemeral, "true")
    if config.pool:
        raise no_file_there("pool", config.pool, "0")
    if config.disk_limit is not None:
        raise no_file_there("disk_limit", config.disk_limit, "None")
    if config.carry == "overlay":
        raise no_file_there("carry", config.carry, '"auto" or "stream"')
    if agent.workspace is None:
        return config
    return attrs.evolve(config, workspace_mode="carried", carry="stream")


def send_argv(binary: str, *, name: str, user: str) -> tuple[str, ...]:
    """`docker exec`: unpack the sessions folder from stdin."""
    return work_exec_argv(binary, name=name, user=user, script=SEND, arguments=[paths.SESSIONS])


def fetch_argv(binary: str, *, name: str, user: str, kept: Iterable[str]) -> tuple[str, ...]:
    """`docker exec`: tell what the sessions folder holds by these names."""
    return work_exec_argv(binary, name=name, user=user, script=FETCH, arguments=[paths.SESSIONS, *kept])
