"""Where an engine's client looks for its engine, read as the client itself does: from variables and files.

No address says whether an engine sees this machine's files: a socket may be forwarded from elsewhere, and an address
of a network may be this machine's own. So this is only told to people; what counts is the proof of each run.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

_PASSWORD: Final = re.compile(r"(?<=://)([^/@:]*):[^/]*@")


def docker_endpoint(environ: Mapping[str, str]) -> str:
    """The address that docker's client speaks to; "" for its default, a socket of this machine."""
    if host := environ.get("DOCKER_HOST"):
        return without_password(host)
    config = Path(environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"))  # noqa: PTH111  never raises
    name = environ.get("DOCKER_CONTEXT") or _text(_read(config / "config.json"), "currentContext")
    if name in ("", "default"):
        return ""
    meta = config / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    return without_password(_text(_read(meta), "Endpoints", "docker", "Host")) or f"docker context {name}"


def podman_endpoint(environ: Mapping[str, str]) -> str:
    """The address that podman's client speaks to, as far as a variable tells; "" if none does."""
    if host := environ.get("CONTAINER_HOST"):
        return without_password(host)
    name = environ.get("CONTAINER_CONNECTION")
    return f"podman connection {name}" if name else ""


def without_password(address: str) -> str:
    """An address without the password that may be in it."""
    return _PASSWORD.sub(r"\1@", address)


def _read(file: Path) -> Any:
    try:
        return orjson.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}


def _text(value: Any, *keys: str) -> str:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""
