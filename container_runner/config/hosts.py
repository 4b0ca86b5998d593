"""What a box may reach by way of the gateway: names, ports, and sets of both that have a name."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

import attrs

from container_runner.config.laws import is_address

WEB: Final = frozenset({80, 443})
"""The ports that an entry without one stands for."""

PRESETS: Final[Mapping[str, tuple[str, ...]]] = {
    "anthropic": ("api.anthropic.com",),
    "openai": ("api.openai.com",),
    "google": ("generativelanguage.googleapis.com",),
    "pypi": ("pypi.org", "files.pythonhosted.org"),
    "npm": ("registry.npmjs.org",),
    "debian": ("deb.debian.org", "security.debian.org"),
    "github": ("github.com", "api.github.com", "codeload.github.com", "*.githubusercontent.com"),
}
"""What `@NAME` stands for in `allow_hosts`. What an allowed host lets through, an upload say, stays through."""

SETS: Final = ", ".join(f"@{name}" for name in PRESETS)

_PART = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_PART}(?:\.{_PART})*")
_ENTRY = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}|\*))?")


def host_name(text: str) -> str | None:
    """A host as rules are compared with it: in lower case, without a last dot or brackets; None if it is none.

    What only looks like a number, as "2130706433" or "0x7f.1", is an address to some resolvers and is none here.
    """
    name = text.lower().removesuffix(".")
    if name.startswith("[") and name.endswith("]"):
        return str(ipaddress.ip_address(name[1:-1])) if is_address(name[1:-1]) and ":" in name else None
    if is_address(name):
        return name if ":" not in name else None
    last = name.rpartition(".")[2]
    return name if _NAME.fullmatch(name) and not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last) else None


@attrs.frozen
class HostRule:
    """One entry: a host, or with `*.` all hosts below it (and not itself), with its ports."""

    host: str
    below: bool
    ports: frozenset[int] | None
    """None: any port."""

    @classmethod
    def parse(cls, entry: str) -> Self | None:
        """`github.com`, `*.example.com`, `github.com:22`, `db.test:*` or `[2001:db8::1]:443`; None if it is none."""
        match = _ENTRY.fullmatch(entry)
        if match is None:
            return None
        below = match[1].startswith("*.")
        host = host_name(match[1].removeprefix("*.") if below else match[1])
        if host is None or (below and is_address(host)):
            return None
        if match[2] in (None, "*"):
            return cls(host, below, WEB if match[2] is None else None)
        port = int(match[2])
        return cls(host, below, frozenset({port})) if 0 < port < 65536 else None

    def allows(self, host: str, port: int) -> bool:
        """Whether it allows a host, as `host_name` gives it."""
        fits = host.endswith(f".{self.host}") if self.below else host == self.host
        return fits and (self.ports is None or port in self.ports)


def is_host_rule(value: Any) -> bool:
    """Whether it is an entry of `allow_hosts`."""
    if not isinstance(value, str):
        return False
    return value[1:] in PRESETS if value.startswith("@") else HostRule.parse(value) is not None


def host_rules(entries: Iterable[str]) -> tuple[HostRule, ...]:
    """The rules that entries stand for, all of which `is_host_rule` takes."""
    spelled = [name for entry in entries for name in (PRESETS[entry[1:]] if entry.startswith("@") else (entry,))]
    return tuple(rule for rule in map(HostRule.parse, spelled) if rule is not None)


def is_network(value: Any) -> bool:
    """Whether it is a network such as 10.1.0.0/16, or one address."""
    if not isinstance(value, str) or "%" in value:
        return False
    try:
        ipaddress.ip_network(value)
    except ValueError:
        return False
    return True
