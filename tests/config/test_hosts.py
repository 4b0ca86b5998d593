"""What `allow_hosts` and `allow_addresses` take, and what an entry allows."""

from __future__ import annotations

import pytest

from container_runner.config.hosts import PRESETS, HostRule, host_name, host_rules, is_host_rule, is_network


@pytest.mark.parametrize(
    ("entry", "host", "port", "is_allowed"),
    [
        ("github.com", "github.com", 443, True),
        ("github.com", "github.com", 80, True),
        ("github.com", "github.com", 22, False),
        ("github.com", "api.github.com", 443, False),
        ("github.com", "notgithub.com", 443, False),
        ("GitHub.com.", "github.com", 443, True),
        ("*.example.com", "a.b.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "badexample.com", 443, False),
        ("db.test:5432", "db.test", 5432, True),
        ("db.test:5432", "db.test", 443, False),
        ("db.test:*", "db.test", 1, True),
        ("10.1.2.3:80", "10.1.2.3", 80, True),
        ("[2001:db8::1]:443", "2001:db8::1", 443, True),
        ("[2001:DB8:0::1]", "2001:db8::1", 443, True),
    ],
)
def test_an_entry_allows_what_it_says(entry: str, host: str, port: int, is_allowed: bool) -> None:
    rule = HostRule.parse(entry)

    assert rule is not None
    assert rule.allows(host, port) is is_allowed


@pytest.mark.parametrize(
    "entry",
    [
        *("", "*", "*.", "**.test", "a b", "http://github.com", "github.com/x", "user@github.com", "github.com:0"),
        *("github.com:65536", "github.com:ssh", "2001:db8::1", "[10.0.0.1]", "*.10.0.0.1", "2130706433", "0x7f.1"),
        *("-a.test", "a..test", "ä.test", "@nobody", "@", 7, None, "a" * 64 + ".test", "a.test\n"),
    ],
)
def test_what_is_no_entry(entry: object) -> None:
    assert not is_host_rule(entry)


@pytest.mark.parametrize("name", PRESETS)
def test_each_set_is_of_entries(name: str) -> None:
    assert is_host_rule(f"@{name}")
    assert len(host_rules([f"@{name}"])) == len(PRESETS[name])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Example.TEST.", "example.test"),
        ("[::1]", "::1"),
        ("[0:0::1]", "::1"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.1", None),  # inet_aton takes it for 127.0.0.1
        ("2130706433", None),
        ("0x7f000001", None),
        ("1.2.3.0x7f", None),
        ("::1", None),
        ("[::1%eth0]", None),
        ("a_b.test", "a_b.test"),
        ("a" * 250 + ".test", None),
    ],
)
def test_a_host_is_a_name_or_an_address_and_no_disguise_of_one(text: str, name: str | None) -> None:
    assert host_name(text) == name


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        *[("10.1.0.0/16", True), ("10.1.2.3", True), ("fd00::/8", True)],
        *[("10.1.2.3/16", False), ("x", False), (7, False), ("fe80::1%eth0", False)],
    ],
)
def test_networks(value: object, is_one: bool) -> None:
    assert is_network(value) is is_one
