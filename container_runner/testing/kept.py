"""The kept containers of a played engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs


@attrs.define(eq=False)
class KeptContainers:
    """Remembers what `run --detach` has made, until `rm` removes it."""

    _raw: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    """What `inspect` says, by the container's name."""

    @property
    def names(self) -> list[str]:
        """The names of those that there are, oldest first."""
        return list(self._raw)

    def end(self, name: str) -> None:
        """Have a container end, as one does whose time limit is over. It is not removed."""
        self._raw[name]["State"]["Status"] = "exited"

    def answer(self, command: Sequence[str]) -> bytes:
        """What the engine says to a `run --detach`, `ps`, `inspect` or `rm`."""
        verb, names = command[1], command[command.index("--") + 1 :] if "--" in command else []
        if verb == "run":
            return self._make(command)
        if verb == "ps":
            wanted = [word.removeprefix("--filter=label=") for word in command if word.startswith("--filter=label=")]
            return "\n".join(raw["Id"] for raw in self._raw.values() if _has(raw, wanted)).encode()
        if verb == "inspect":
            found = [raw for raw in self._raw.values() if raw["Id"] in names or raw["Name"][1:] in names]
            return json.dumps(found).encode()
        self._raw.pop(names[0], None)
        return b""

    def _make(self, command: Sequence[str]) -> bytes:
        labels = dict(word[8:].partition("=")[::2] for word in command if word.startswith("--label="))
        name = next(word[7:] for word in command if word.startswith("--name="))
        self._raw[name] = {
            "Id": hashlib.sha256(name.encode()).hexdigest(),
            "Name": f"/{name}",
            "Created": f"2026-01-01T00:00:{len(self._raw) % 60:02}Z",
            "Config": {"Labels": labels},
            "State": {"Status": "running"},
        }
        return str(self._raw[name]["Id"]).encode()


def _has(raw: Mapping[str, Any], wanted: Sequence[str]) -> bool:
    labels = raw["Config"]["Labels"]
    pairs = (each.partition("=") for each in wanted)
    return all(name in labels and value in ("", labels[name]) for name, _, value in pairs)
