"""Which addresses may be connected to, whatever a name says."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import anyio
import pytest

from container_runner.gateway import policy as policies
from container_runner.gateway import upstream
from container_runner.gateway.policy import MOST_ADDRESSES, Policy, own_addresses
from container_runner.gateway.refused import Refused
from container_runner.gateway.upstream import connect

PUBLIC = ("93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822")
PRIVATE = (
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("168.63.129.16", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1"),
    *("::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1"),
    *("::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1", "4000::1"),
    "2001:0:0:0:0:0:80ff:fffe",  # Teredo, of 127.0.0.1
)
nobody = Policy(("*.test", "10.1.2.3"), own=frozenset())


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert nobody.allows(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PRIVATE)
def test_others_are_not(address: str) -> None:
    assert not nobody.allows(ipaddress.ip_address(address))


def test_the_operator_may_open_some() -> None:
    policy = Policy((), ("10.1.0.0/16", "fd00::/8"), own=frozenset())

    allowed = [policy.allows(ipaddress.ip_address(a)) for a in ("10.1.2.3", "10.2.2.3", "fd00::1", "::ffff:10.1.2.3")]
    assert allowed == [True, False, True, True]


def test_this_machine_is_not_reached_by_a_public_address_of_its_own() -> None:
    own = ipaddress.ip_address("93.184.216.34")
    policy = Policy((), own=frozenset({own}))

    assert not policy.allows(own)
    assert not policy.allows(ipaddress.ip_address("::ffff:93.184.216.34"))
    assert ipaddress.ip_address("127.0.0.1") in own_addresses()


async def test_one_private_address_is_enough_to_refuse_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append((host, port))
        return [(socket.AF_INET, 1, 6, "", (address, port)) for address in ("93.184.216.34", "10.0.0.1")]

    monkeypatch.setattr(anyio, "getaddrinfo", resolve)
    with pytest.raises(Refused, match=r"a\.test is at 10\.0\.0\.1, which is private") as refused:
        await nobody.resolve("a.test", 443)
    assert refused.value.status == 403
    assert asked == [("a.test", 443)]


async def test_of_the_addresses_of_a_name_some_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [f"93.184.216.{number}" for number in range(1, 9)]
    tried = []

    async def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, 1, 6, "", (address, 443)) for address in many]

    async def connect_tcp(address: str, _: int) -> Any:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(anyio, "getaddrinfo", resolve)
    monkeypatch.setattr(anyio, "connect_tcp", connect_tcp)
    with pytest.raises(Refused, match=r"there is no connection to 93\.184\.216\.1:443"):
        await connect(await nobody.resolve("a.test", 443), 443)
    assert tried == many[:MOST_ADDRESSES]


async def test_neither_a_name_nor_a_connection_may_take_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any, **__: Any) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(policies, "NAME_TIMEOUT", 0.05)
    monkeypatch.setattr(upstream, "CONNECT_TIMEOUT", 0.05)
    monkeypatch.setattr(anyio, "getaddrinfo", never)
    monkeypatch.setattr(anyio, "connect_tcp", never)
    with anyio.fail_after(30):
        with pytest.raises(Refused, match=r"was not resolved in 0\.05 seconds"):
            await nobody.resolve("a.test", 443)
        with pytest.raises(Refused, match=r"no answer in 0\.05 seconds"):
            await connect(["93.184.216.34"], 443)


async def test_a_name_that_is_not_there() -> None:
    with pytest.raises(Refused, match=r"no-such-name\.invalid can not be resolved") as refused:
        await nobody.resolve("no-such-name.invalid", 443)
    assert refused.value.status in (502, 504)
    assert not refused.value.is_denial


@pytest.mark.parametrize(
    ("host", "port", "status"), [("evil.com", 443, 403), ("a.test", 22, 403), ("127.1", 80, 400), ("a b", 80, 400)]
)
def test_what_is_not_allowed_is_denied(host: str, port: int, status: int) -> None:
    with pytest.raises(Refused) as refused:
        nobody.check(host, port)
    assert refused.value.status == status
    assert refused.value.is_denial


def test_an_allowed_host_is_named_as_it_is_resolved() -> None:
    assert nobody.check("A.Test.", 443) == "a.test"
