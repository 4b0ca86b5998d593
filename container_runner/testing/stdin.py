"""What an agent gets on stdin, taken apart again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import attrs

from container_runner.box import guest


@attrs.frozen
class Stdin:
    """What an agent's container or exec gets on stdin, see `guest.header`."""

    fields: Mapping[str, str]
    variables: dict[str, str]
    prompt: bytes

    @classmethod
    def of(cls, stdin: bytes) -> Stdin:
        first, _, rest = stdin.partition(b"\n")
        lines = rest.split(b"\n", int(first or 0))
        words = shlex.split(b"\n".join(lines[:-1]).decode("utf-8", "surrogateescape"))
        fields = dict(word.partition("=")[::2] for word in words)
        exported = shlex.split(fields.get("variables", ""))[2::3]  # behind "command export"
        waited_for = guest.GO if "gated" in fields else b""
        prompt = lines[-1].removeprefix(waited_for)[: int(fields["size"])]
        return cls(fields, dict(word.partition("=")[::2] for word in exported), prompt)

    @classmethod
    def length(cls, stdin: bytes) -> int | None:
        """How long it is in all, once the header is there; None before."""
        first, newline, rest = stdin.partition(b"\n")
        if not newline or rest.count(b"\n") < int(first):
            return None
        behind = rest.split(b"\n", int(first))[-1]
        fields = cls.of(stdin).fields
        return len(stdin) - len(behind) + ("gated" in fields) * len(guest.GO) + int(fields["size"])
