"""What may be reached: which names, and which addresses behind them."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

import anyio
import attrs

from container_runner.config.hosts import HostRule, host_name, host_rules
from container_runner.gateway.refused import Refused

NAME_TIMEOUT: Final = 10.0
"""Seconds that a name may take to be resolved."""

MOST_ADDRESSES: Final = 4
"""How many addresses of a name are tried."""

_ASSIGNED = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")))
"""What Python's tables take for public, or have not heard of."""
_PUBLIC_METADATA = ipaddress.ip_address("168.63.129.16")  # Azure's, which counts as a public address


def _rules(entries: Iterable[str]) -> tuple[HostRule, ...]:
    return host_rules(entries)


def _networks(entries: Iterable[str]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ipaddress.ip_network, entries))


@attrs.frozen
class Policy:
    """Which hosts a box may reach, and where they may be. What is not allowed is denied.

    A name is resolved once, every address is looked at, and the connection goes to one that was: who owns a name can
    not have it mean another place a moment later.
    """

    rules: tuple[HostRule, ...] = attrs.field(converter=_rules)
    networks: tuple[IPv4Network | IPv6Network, ...] = attrs.field(default=(), converter=_networks)
    """Private addresses that are allowed all the same."""
    own: frozenset[IPv4Address | IPv6Address] = attrs.field(factory=lambda: own_addresses(), repr=False)
    """This machine's addresses."""

    def check(self, host: str, port: int) -> str:
        """The host's name, as it is to be resolved.

        Raises:
            Refused: it is no name, or not allowed.
        """
        if not 0 < port < 65536:
            raise Refused(400, f"{port} is no port")
        name = host_name(host)
        if name is None:
            raise Refused(400, f"{host[:100]!r} is no host name")
        if not self.permits(name, port):
            raise Refused(403, f"{name}:{port} is not in allow_hosts")
        return name

    def permits(self, host: str, port: int) -> bool:
        """Whether a host is among those that are allowed."""
        name = host_name(host)
        return name is not None and any(rule.allows(name, port) for rule in self.rules)

    async def resolve(self, name: str, port: int) -> list[str]:
        """The addresses of a name that may be connected to.

        Raises:
            Refused: it has none, or one is private.
        """
        found = await addresses_of(name, port)
        if denied := [address for address in found if not self.allows(ipaddress.ip_address(address))]:
            raise Refused(403, f"{name} is at {denied[0]}, which is private and not in allow_addresses")
        return found[:MOST_ADDRESSES]

    def allows(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether an address may be connected to: a public one, none of this machine's, or one of `networks`."""
        inner = _embedded(address)
        if any(place in network for network in self.networks for place in (address, inner)):
            return True
        if inner == _PUBLIC_METADATA or {inner, address} & self.own:
            return False
        if any(inner in network for network in _NOT_PUBLIC if network.version == inner.version):
            return False
        if inner.version == 6 and inner not in _ASSIGNED:
            return False
        return inner.is_global and not inner.is_multicast


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside of an IPv6 one, which a router or a relay would take it for; else itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None) or address


async def addresses_of(name: str, port: int) -> list[str]:
    """All addresses of a name, or of an address itself.

    Raises:
        Refused: it has none, or is not resolved in time.
    """
    with contextlib.suppress(ValueError):  # an address is one already, and need not wait for a thread
        return [str(ipaddress.ip_address(name))]
    try:
        with anyio.fail_after(NAME_TIMEOUT):
            found = await anyio.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise Refused(504, f"{name} was not resolved in {NAME_TIMEOUT:g} seconds") from None
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no such name"
        raise Refused(502, f"{name} can not be resolved: {reason}") from None
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))


def own_addresses() -> frozenset[IPv4Address | IPv6Address]:
    """This machine's addresses."""
    import psutil  # slow to import, and most commands have no gateway

    entries = (entry for entries in psutil.net_if_addrs().values() for entry in entries if entry.family in _FAMILIES)
    return frozenset(ipaddress.ip_address(entry.address.partition("%")[0]) for entry in entries)


_FAMILIES = (socket.AF_INET, socket.AF_INET6)
