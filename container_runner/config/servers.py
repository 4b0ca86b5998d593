"""MCP servers of this machine that a box may use: `HostServer`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import attrs

from container_runner.config.laws import (
    NOT_SHOWN,
    each,
    frozen,
    is_line,
    is_text,
    law,
    one_of,
    optional,
    pattern,
    refuse,
    strings,
    valid_env,
)

is_server_name = pattern(r"(?!container_runner\Z)[A-Za-z0-9_-]{1,32}")

_is_url = pattern(r"https?://[^\s/@\"'\\\x00-\x20\x7f]+(?:/[^\s\"'\\\x00-\x20\x7f#]*)?", longest=2_048)
_is_header = pattern(r"[A-Za-z0-9-]{1,64}")
_is_header_value = pattern(r"[\x20-\x7e]+")


def _valid_headers(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Mapping) or not all(_is_header(n) and _is_header_value(t) for n, t in value.items()):
        refuse(attribute.name, NOT_SHOWN, 'a table of headers, as Authorization = "Bearer ${TOKEN}"')


@attrs.frozen(kw_only=True)
class HostServer:
    """An MCP server of this machine: `HostServer(command="files-server", args=["/srv/docs"])`.

    Attributes:
        command: The program, which is started on this machine for each run that uses it, and speaks MCP on its stdin
            and stdout. None: it is at a `url`.
        args: Its arguments.
        env: Variables for it. `${NAME}` in a value stands for that variable of this process. It has a few of yours
            beside, such as PATH and HOME, and no secrets.
        url: Where a server is that runs already, and speaks MCP by streamable HTTP. None: it is a `command`.
        headers: What is sent to that with each request. `${NAME}` stands for a variable of this process.
        type: `stdio` or `http`, as other programs want to hear it. None: it is told by the rest.
    """

    FORMS: ClassVar[str] = (
        'a command, as "files-server /srv/docs", or the URL of a server that runs already; or a table with command,'
        " args and env, or with url and headers"
    )

    command: str | None = attrs.field(
        default=None, validator=optional(law("a program's name or path", lambda value: is_line(value)))
    )
    args: tuple[str, ...] = attrs.field(
        default=(), converter=strings, validator=each("an argument", is_text), repr=False
    )
    env: Mapping[str, str] = attrs.field(
        factory=dict, converter=frozen, validator=valid_env, hash=False, repr=lambda env: f"{{{', '.join(env)}}}"
    )
    url: str | None = attrs.field(
        default=None, validator=optional(law("an http or https URL without a login", _is_url, lambda _: NOT_SHOWN))
    )
    headers: Mapping[str, str] = attrs.field(
        factory=dict,
        converter=frozen,
        validator=_valid_headers,
        hash=False,
        repr=lambda headers: f"{{{', '.join(headers)}}}",
    )
    type: Literal["stdio", "http"] | None = attrs.field(default=None, validator=optional(one_of("stdio", "http")))

    def __attrs_post_init__(self) -> None:
        if (self.command is None) is (self.url is None):
            refuse("command", self.command, "either a command or a url")
        for name in ("args", "env") if self.command is None else ("headers",):
            if getattr(self, name):
                refuse(name, NOT_SHOWN, f"none with a {'url' if self.command is None else 'command'}")
        if self.type is not None and self.type != ("http" if self.command is None else "stdio"):
            refuse("type", self.type, "stdio for a command, http for a url")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The server that a command or a URL stands for.

        Raises:
            ConfigError: if it stands for none.
        """
        if type(text) is not str:
            refuse("server", NOT_SHOWN, cls.FORMS)
        if text.startswith(("http://", "https://")):
            return cls(url=text)
        try:
            words = shlex.split(text)
        except ValueError:
            words = []
        if not words:
            refuse("server", NOT_SHOWN, cls.FORMS)
        return cls(command=words[0], args=words[1:])

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of this process's variables that it wants."""
        values = (*self.env.values(), *self.headers.values())
        return tuple(dict.fromkeys(name for value in values for name in VARIABLE.findall(value)))


VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""How a value names a variable of this process."""
