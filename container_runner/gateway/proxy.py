"""The operator's own way out."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import attrs

from container_runner.errors import ConfigError


@attrs.frozen
class Proxy:
    """The operator's own way out, as `HTTPS_PROXY` and its like name it."""

    host: str
    port: int
    login: str = attrs.field(default="", repr=False)
    """What `Proxy-Authorization` says, if it wants to know."""

    is_tls: bool = False
    """Whether it is spoken to by TLS itself."""

    direct: tuple[str, ...] = ()
    """Hosts that are connected to directly, with all below them; "*" stands for all."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Proxy | None:
        """The one that the variables name; None if none does.

        A proxy for https serves for all: everything goes through it by CONNECT.

        Raises:
            ConfigError: it is none that speaks HTTP. Connections would not take the way that the operator wants.
        """
        names = ("https_proxy", "HTTPS_PROXY", "http_proxy", "all_proxy", "ALL_PROXY")
        name = next((name for name in names if environ.get(name)), None)
        if name is None:
            return None
        given = environ[name]
        allowed = "the http:// or https:// URL of a proxy, which the gateway can speak to, or be unset"
        try:
            url = urlsplit(given if "://" in given else f"http://{given}")
            host, port = url.hostname, url.port
        except ValueError:
            raise ConfigError(name, "no URL", allowed) from None  # the value itself may hold a password
        if host is None or url.scheme not in ("http", "https"):
            raise ConfigError(name, "no URL" if host is None else f"a {url.scheme} proxy", allowed)
        login = ""
        if url.username is not None:
            word = f"{unquote(url.username)}:{unquote(url.password or '')}"
            login = f"Basic {base64.b64encode(word.encode()).decode()}"
        direct = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").replace(",", " ").lower().split()
        entries = (entry if entry == "*" else entry.removeprefix("*").removeprefix(".") for entry in direct)
        is_tls = url.scheme == "https"
        return cls(host, port or (443 if is_tls else 80), login, is_tls, tuple(filter(None, entries)))

    def serves(self, host: str) -> bool:
        """Whether a host is reached through it."""
        return not any(entry in ("*", host) or host.endswith(f".{entry}") for entry in self.direct)
