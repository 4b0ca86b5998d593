"""Secrets beside the model's key, as routes: each leads to one host, and adds what the box is not to have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from container_runner.config.laws import pattern, refuse_unset
from container_runner.config.values import Injection
from container_runner.errors import ConfigError
from container_runner.gateway.route import Route

_is_header_value = pattern(r"[\x20-\x7e\u0080-\U0010ffff]{8,}", longest=16_384)


def secrets_of(injections: Iterable[Injection], environ: Mapping[str, str]) -> dict[str, str]:
    """The values of the secrets, by their variables.

    Raises:
        ConfigError: one is not set, or can not be in a header.
    """
    found: dict[str, str] = {}
    for index, one in enumerate(injections):
        field, value = f"inject[{index}].secret", environ.get(one.secret, "").strip()  # a newline is nobody's intention
        if not value:
            refuse_unset(field, one.secret)
        if not _is_header_value(value):
            allowed = "a variable with 8 characters or more on one line: what is shorter can not be found in an answer"
            raise ConfigError(field, one.secret, allowed)
        found[one.secret] = value
    return found


def routes_of(injections: Iterable[Injection], values: Mapping[str, str], token: str) -> tuple[Route, ...]:
    """A route for each host.

    Args:
        values: see `secrets_of`.
        token: what the box may show in the place of each.
    """
    headers: dict[tuple[str, int], dict[str, str]] = {}
    allowed: dict[tuple[str, int], tuple[str, ...]] = {}
    for one in injections:
        name, shape = one.shape
        headers.setdefault(one.address, {})[name] = shape.replace("{}", values[one.secret])
        allowed[one.address] = one.allowed
    routes = []
    for (host, port), added in headers.items():
        spelled = f"[{host}]" if ":" in host else host
        where = spelled if port == 443 else f"{spelled}:{port}"
        routes.append(
            Route(
                name=where,
                upstream=f"https://{where}",
                headers=added,
                allowed=allowed[host, port],
                token=token,
                is_named=True,
                hidden=tuple(values.values()),
            )
        )
    return tuple(routes)
