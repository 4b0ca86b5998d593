"""Values in a configuration, and how the text of a person becomes one: mounts, ports, tmpfs, secrets to inject."""

from __future__ import annotations

import posixpath
import re
from pathlib import PurePosixPath
from typing import Any, ClassVar, Final, Literal, Self

import attrs

from container_runner.config import paths
from container_runner.config.hosts import HostRule
from container_runner.config.laws import (
    NOT_SHOWN,
    boolean,
    each,
    is_address,
    is_line,
    is_variable,
    law,
    one_of,
    pattern,
    refuse,
    strings,
    whole,
)
from container_runner.quantities import MIB, parse_size

RESERVED_TARGETS = ("/proc", "/sys", "/dev")
"""Paths in the container that nothing is mounted on or below: they are the kernel's."""

OWN_TARGETS = (paths.WORKSPACE, "/tmp")  # noqa: S108  a path in the container
"""Paths in the container that we mount ourselves, so that nothing else is mounted exactly there."""

ENGINE_SOCKETS = frozenset({"docker.sock", "podman.sock", "containerd.sock", "crio.sock", "buildkitd.sock"})
"""Sockets whose holder controls the engine, and so the whole machine; a read-only mount does not help."""


def _is_source(value: Any) -> bool:
    return bool(is_line(value)) and value[0] in "/~"


def _is_no_engine(value: Any) -> bool:
    return PurePosixPath(value).name not in ENGINE_SOCKETS


def _is_absolute(value: Any) -> bool:
    return bool(is_line(value)) and value.startswith("/") and ".." not in value.split("/")


def _normalised(path: str) -> str:
    if not _is_absolute(path):
        return path  # the validator refuses it
    return "/" + posixpath.normpath(path).lstrip("/")  # normpath keeps two leading slashes


def _is_target(value: Any) -> bool:
    if not _is_absolute(value) or value == "/":
        return False
    return not any(f"{value}/".startswith(f"{reserved}/") for reserved in RESERVED_TARGETS)


_TARGET = f"an absolute path in the container without '..', not / and not below {', '.join(RESERVED_TARGETS)}"


@attrs.frozen
class Mount:
    """A folder or file of the host that is in the container too: `Mount("/data", "/d", read_only=True)`.

    Attributes:
        source: The path on the host, absolute or starting with `~`. It is kept as given until the mount is made.
        target: The path in the container: absolute, without `..`, and not one that the kernel or we need.
        read_only: Whether the container may only read. File systems mounted below the source may stay writable.
    """

    FORMS: ClassVar[str] = (
        '"host:container", "host:container:ro" or "host:container:rw";'
        " or, if a path has a ':' or outer spaces, a table with source, target and read_only"
    )

    source: str = attrs.field(
        validator=[
            law(
                "a path that starts with / or ~, such as $PWD/data (an engine takes a relative one for the name of a "
                "volume; one of those goes by --extra-arg=--volume=NAME:/PATH)",
                _is_source,
            ),
            law("no engine's socket, which gives away the machine", _is_no_engine),
        ]
    )
    target: str = attrs.field(converter=_normalised, validator=law(_TARGET, _is_target))
    read_only: bool = attrs.field(default=False, validator=boolean)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The mount that "host:container[:ro|rw]" stands for.

        Raises:
            ConfigError: if it stands for none, or could stand for two because a path has a ':'.
        """
        if not isinstance(text, str):
            refuse("mount", text, cls.FORMS)
        pair, mode = (text[:-3], text[-2:]) if text.endswith((":ro", ":rw")) else (text, "rw")
        source, _, target = pair.rpartition(":")
        if not source or not target.startswith("/") or ":/" in source or text != text.strip():
            refuse("mount", text, cls.FORMS)
        return cls(source, target, mode == "ro")


PathMapping = Mount
"""What a mount is called elsewhere."""


@attrs.frozen
class PortBinding:
    """A port of the container that the host listens on: `PortBinding(80, 8080)`.

    Attributes:
        container_port: The port in the container, 1 to 65535.
        host_port: The port on the host, 1 to 65535.
        host_ip: The address of the host to listen on. The default lets nobody in but this machine.
        protocol: `tcp` or `udp`.
    """

    FORMS: ClassVar[str] = (
        '"8080:80" (host:container), "80", "0.0.0.0:8080:80" or "[::1]:8080:80", and /udp after it for UDP'
    )

    container_port: int = attrs.field(validator=whole(1, 65_535))
    host_port: int = attrs.field(validator=whole(1, 65_535))
    host_ip: str = attrs.field(default="127.0.0.1", validator=law("an IPv4 or IPv6 address", is_address))
    protocol: Literal["tcp", "udp"] = attrs.field(default="tcp", validator=one_of("tcp", "udp"))

    _TEXT: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:(?:(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<v4>[0-9.]+)):)?(?P<host>[0-9]{1,5}):)?"
        r"(?P<port>[0-9]{1,5})(?:/(?P<kind>tcp|udp))?"
    )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The binding that "[[address:]host:]container[/tcp|/udp]" stands for; one port alone is both.

        Raises:
            ConfigError: if it stands for none.
        """
        match = cls._TEXT.fullmatch(text) if type(text) is str else None
        if match is None:
            refuse("port", text, cls.FORMS)
        port, host, kind = match["port"], match["host"], match["kind"]
        address = match["v6"] or match["v4"] or "127.0.0.1"
        return cls(int(port), int(host or port), address, "udp" if kind == "udp" else "tcp")


def _tmpfs_size(value: int | str) -> int:
    return parse_size(value, "size")


def _tmpfs_mode(value: int | str) -> int:
    if isinstance(value, str) and re.fullmatch("[0-7]{3,4}", value):
        return int(value, 8)
    return value  # type: ignore[return-value]  # `law` refuses it


@attrs.frozen
class Tmpfs:
    """A folder in the container's memory: `Tmpfs("/cache", size="256m")`. It is always nosuid and nodev.

    Attributes:
        target: The path in the container, as `Mount.target`, and without `:`.
        size: The most that it holds, as a size ("64m"); it counts towards the memory limit.
        executable: Whether programs in it may be run.
        mode: The folder's permissions, an int or octal digits in a string; everybody's and sticky by default.
    """

    FORMS: ClassVar[str] = '"/path" or "/path:size=64m,exec,mode=700", with any of the three options'

    target: str = attrs.field(
        converter=_normalised,
        validator=law(f"{_TARGET}, and without ':'", lambda value: _is_target(value) and ":" not in value),
    )
    size: int = attrs.field(default=64 * MIB, converter=_tmpfs_size)
    executable: bool = attrs.field(default=False, validator=boolean)
    mode: int = attrs.field(
        default=0o1777,
        converter=_tmpfs_mode,
        validator=law("octal digits such as 700 or 1777", lambda mode: type(mode) is int and 0 <= mode <= 0o7777),
    )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The tmpfs that "/path[:size=SIZE,exec,mode=OCTAL]" stands for.

        Raises:
            ConfigError: if it stands for none.
        """
        if not isinstance(text, str):
            refuse("tmpfs", text, cls.FORMS)
        target, colon, options = text.partition(":")
        given: dict[str, Any] = {}
        for option in options.split(",") if colon else ():
            name, equals, value = option.partition("=")
            if name in given or name not in {"size", "exec", "mode"} or bool(equals) is (name == "exec"):
                refuse("tmpfs", text, cls.FORMS)
            given[name] = value
        return cls(target, executable="exec" in given, **{k: v for k, v in given.items() if k != "exec"})


_is_header = pattern(
    r"[A-Za-z0-9-]{1,64}(?:: (?=[^{}]*\{\}[^{}]*\Z)[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)?", longest=512
)
_is_rule = pattern(r"(?:[A-Z]+|\*) [/*][\x21-\x7e]*", longest=1024)

_OF_THE_MESSAGE = frozenset(
    (
        *("accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-authenticate"),
        *("proxy-authorization", "proxy-connection", "range", "te", "trailer", "transfer-encoding", "upgrade"),
    )
)
"""Headers that say what a request is, and where it goes."""

MODEL: Final = "model"
"""The name at the gateway behind which the model's service is; no host may have it."""

SERVERS: Final = "mcp"
"""The one behind which MCP servers are, as /mcp/NAME."""

ANYTHING: Final = ("* /*",)
"""All methods and paths."""


def _is_injectable(value: Any) -> bool:
    return bool(_is_header(value)) and value.partition(":")[0].lower() not in _OF_THE_MESSAGE


def _is_one_host(value: Any) -> bool:
    rule = HostRule.parse(value) if isinstance(value, str) else None
    return rule is not None and not rule.below and not value.endswith(":*") and value.lower() not in (MODEL, SERVERS)


@attrs.frozen
class Injection:
    """A secret that the gateway adds to what is asked of one host: `Injection("api.test", "x-api-key", "TEST_KEY")`.

    The box asks for http://HOST/, and the gateway asks that host by TLS.

    Attributes:
        host: The host, as "api.example.com" or "api.example.com:8443".
        header: The header, as "x-api-key", or with its value, in which {} stands for the secret, as "Authorization:
            Bearer {}".
        secret: The name of the variable of this process that holds the secret.
        allowed: What may be asked, as methods and paths: "GET /v1/*". Either may be or hold `*`.
    """

    FORMS: ClassVar[str] = (
        '"HOST HEADER SECRET", as "api.example.com Authorization: Bearer {} EXAMPLE_TOKEN", where SECRET is the name'
        " of a variable; or a table with host, header, secret and allowed"
    )

    host: str = attrs.field(validator=law("one host, as api.example.com or api.example.com:8443", _is_one_host))
    header: str = attrs.field(
        validator=law('a header, as "x-api-key" or "Authorization: Bearer {}"', _is_injectable, lambda _: NOT_SHOWN)
    )
    secret: str = attrs.field(
        validator=law("the name of a variable, without its value", is_variable, lambda _: NOT_SHOWN)
    )
    allowed: tuple[str, ...] = attrs.field(
        default=ANYTHING, converter=strings, validator=each('a method and a path, as "GET /v1/*"', _is_rule)
    )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The injection that "HOST HEADER SECRET" stands for.

        Raises:
            ConfigError: if it stands for none.
        """
        words = text.split(" ") if type(text) is str else []
        if len(words) < 3 or not is_variable(words[-1]):
            refuse("inject", NOT_SHOWN, cls.FORMS)  # somebody may have written a value
        return cls(words[0], " ".join(words[1:-1]), words[-1])

    @property
    def address(self) -> tuple[str, int]:
        """The host's name and port."""
        rule = HostRule.parse(self.host)
        assert rule is not None  # noqa: S101  the validator has seen it
        return rule.host, 443 if rule.ports is None or len(rule.ports) > 1 else next(iter(rule.ports))

    @property
    def shape(self) -> tuple[str, str]:
        """The header's name in lower case, and its value with {} for the secret."""
        name, _, value = self.header.partition(": ")
        return name.lower(), value or "{}"
