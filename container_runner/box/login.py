"""A login file of the host's: whether there is a login in it, what in it is secret, and its mount."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from container_runner.agents.runtime import Credentials
from container_runner.box.user import User
from container_runner.config.container import ContainerConfig
from container_runner.config.values import Mount
from container_runner.errors import ConfigError
from container_runner.folders import read_regular

DEPTH: Final = 4
"""How many levels of the file are looked at."""

_SECRET: Final = re.compile("token|key|secret|password", re.IGNORECASE)


def login_mount(config: ContainerConfig, credentials: Credentials, user: User) -> Mount | None:
    """The host's login file, read-only, if the configuration allows it and there is a login in it.

    Raises:
        ConfigError: it is wanted, and there is none for this user.
    """
    if config.credentials not in ("auto", "file") or credentials.file is None or credentials.target is None:
        return None
    path = Path(os.path.expanduser(credentials.file))  # noqa: PTH111  without a home it is not there, and no more
    is_there = path.is_file() and user.can_read(path)
    if is_there and read_login(path):
        return Mount(str(path.resolve()), credentials.target, read_only=True)
    if config.credentials == "auto":
        return None
    names = " or ".join(credentials.names)
    why = f"there is no login in {path}" if is_there else f"{path} is not there or user {user} can not read it"
    raise ConfigError("credentials", "file", f'"env" with {names} set, because {why}')


def read_login(file: Path) -> dict[str, str]:
    """The secrets in a login file, by what is shown in their place; nothing if nobody could log in with it.

    Programs leave files behind that are none: empty, without a token, or with one that was cleared or has expired and
    can not be refreshed.

    Args:
        file: its path, which may be a link.
    """
    try:
        data = read_regular(file.resolve())
    except (OSError, RuntimeError):  # it is not there, is no file, or not ours to read
        return {}
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        text = data.decode("utf-8", "replace").strip()
        return {file.name: text} if text else {}
    return {f"{file.name}:{name}": secret for name, secret in _secrets(value, "", DEPTH)}


def _secrets(value: Any, place: str, depth: int) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict) or depth == 0:
        return
    expires, refreshed = value.get("expiresAt"), value.get("refreshToken")
    if isinstance(expires, int | float) and not (expires > 0 and (refreshed or expires > 1000 * time.time())):
        return
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _secrets(inner, f"{place}{key}.", depth - 1)
        elif isinstance(inner, str) and inner and _SECRET.search(key):
            yield f"{place}{key}", inner
