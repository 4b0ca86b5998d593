"""Ways to a service whose key never enters the box: it is added here, on the way out."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

import attrs

from container_runner.config.values import ANYTHING
from container_runner.gateway.refused import Refused

KEY_HEADERS: Final = ("authorization", "x-api-key", "x-goog-api-key", "api-key", "cookie")
"""Headers in which a key may be. None of the box's goes on by a route."""

KEY_WORDS: Final = ("key", "api_key", "api-key", "access_token", "oauth_token")
"""Words of a query in which a key of somebody else's could be."""

OVERRIDES: Final = (
    *("x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url"),
    "http2-settings",
)
"""Headers that some services take for another method or path than the one that was allowed."""

_ODD_PATH = re.compile(r"\.\.|//|\\|;|#|%(?:2e|2f|5c|00|25|23|3b|3f)", re.IGNORECASE)
"""What a server might take for another path than the one that was allowed."""


IN_PARTS: Final = ("range", "if-range")
"""Headers by which a part of an answer is asked for. A secret in two parts would not be found."""


@attrs.frozen(kw_only=True)
class Route:
    """`http://127.0.0.1:PORT/<name>/` in the box, which leads to one service, by the methods and paths that it may."""

    name: str
    upstream: str
    """The service's base URL."""

    headers: Mapping[str, str] = attrs.field(repr=False)
    """What is added to each request, such as {"x-api-key": the real key}. The names are in lower case."""

    allowed: tuple[str, ...] = ANYTHING
    """A method and a path, as "POST /v1/messages"; either may be or hold `*`."""

    token: str = attrs.field(factory=lambda: new_token(), repr=False)
    """What the box shows in place of the key: this run's alone."""

    is_named: bool = False
    """Whether it is also found as http://HOST/, and the token need not be shown. All that it leads to is a service
    which may be anything, so no protocol is switched there."""

    hidden: tuple[str, ...] = attrs.field(default=(), repr=False)
    """What no answer has in it for the box, as the key."""

    @property
    def url(self) -> SplitResult:
        """The service's base URL in parts."""
        return urlsplit(self.upstream)

    @property
    def whole(self) -> str:
        """What is asked of a service that is just this URL."""
        return f"{self.url.path or '/'}{f'?{self.url.query}' if self.url.query else ''}"

    @property
    def host(self) -> str:
        return self.url.hostname or ""

    @property
    def port(self) -> int:
        return self.url.port or (443 if self.is_tls else 80)

    @property
    def is_tls(self) -> bool:
        return self.url.scheme == "https"

    def target(self, method: str, path: str) -> str:
        """What is asked of the service for *path*, which begins behind the route's name.

        Raises:
            Refused: that is not allowed.
        """
        if method in ("TRACE", "TRACK"):  # which tell back what was asked, headers and all
            raise Refused(405, f"{method} is not allowed by way of /{self.name}")
        bare, _, query = path.partition("?")
        names = [name.lower() for name, _ in parse_qsl(query, keep_blank_values=True)]
        if (
            ";" in query or "#" in path or any(name in KEY_WORDS for name in names)
        ):  # some services split at ";" as well
            raise Refused(403, f"a key or a semicolon in the query, or a #, is not allowed by way of /{self.name}")
        if (self.allowed != ANYTHING and _ODD_PATH.search(bare)) or not any(
            fnmatchcase(f"{method} {bare}", rule) for rule in self.allowed
        ):
            raise Refused(403, f"{method} {bare[:200]} is not allowed by way of /{self.name}")
        return self.url.path.rstrip("/") + path

    def check_token(self, headers: Iterable[tuple[str, str]]) -> None:
        """See that the box has shown this run's token; or, if the route is named, no other value in its place.

        Raises:
            Refused: it has not.
        """
        given = list(headers)
        if self.is_named:
            for name, value in given:
                if name.replace("_", "-") in self.headers and not _is_token(value.rpartition(" ")[2], self.token):
                    reason = f"{name} is added on the way to {self.host}: leave it out, or send what is in its variable"
                    raise Refused(401, reason)
            return
        if not shows(given, self.token):
            raise Refused(401, f"/{self.name} wants the key that this run was given")

    def serves(self, host: str, port: int) -> bool:
        """Whether a request for http://host:port/ takes it."""
        return self.is_named and host == self.host and port in ((80, self.port) if self.port == 443 else (self.port,))

    @property
    def dropped(self) -> set[str]:
        """The headers of the box's that do not go on."""
        parts = IN_PARTS if self.hidden else ()
        packed = ("accept-encoding",) if self.hidden else ()
        return {"host", "anthropic-beta", *KEY_HEADERS, *OVERRIDES, *self.headers, *parts, *packed}

    @property
    def added(self) -> list[tuple[bytes, bytes]]:
        """The headers of ours."""
        is_usual = self.port == (443 if self.is_tls else 80)
        named = f"[{self.host}]" if ":" in self.host else self.host
        plain = [("accept-encoding", "identity")] if self.hidden else []  # in what is packed, nothing is found
        pairs = [("host", named if is_usual else f"{named}:{self.port}"), *self.headers.items(), *plain]
        return [(name.encode(), value.encode()) for name, value in pairs]


def new_token() -> str:
    """A word that nobody can guess."""
    return secrets.token_urlsafe(32)


def shows(headers: Iterable[tuple[str, str]], token: str) -> bool:
    """Whether one of the headers in which a key may be has this token."""
    return any(
        name in KEY_HEADERS and _is_token(value.removeprefix("Bearer ").removeprefix("bearer "), token)
        for name, value in headers
    )


def _is_token(value: str, token: str) -> bool:
    return hmac.compare_digest(value.encode(), token.encode())
