"""Takes secrets out of what a run leaves to read, and out of its errors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import orjson

from container_runner.errors import ContainerRunnerError
from container_runner.gateway.veil import encoded, forms

_PROTOCOL_WORD = re.compile(r"[A-Za-z_]{1,40}")
_PRINTABLE_ESCAPE = re.compile(rb"\\u00[2-7]")
_SAFE_RUN = re.compile(r"[A-Za-z0-9_.-]+")
_BREAK = re.compile(r"\r?\n|\\n")
_BASE64_RUN = re.compile(r"[A-Za-z0-9]{4,20}")


class Scrubber:
    """Replaces the values of variables by their names, in whatever way JSON spells them.

    A value is found in each of the `forms` that it may have; and, if it has several lines, in each of them that is long
    enough. A secret of 8 bytes is also found in base64, wherever in
    what was encoded it stood, and over several lines.

    Args:
        values: the values by their names.
        plain: those of them that are no secrets by their kind; their values need 8 characters, others 4.
    """

    def __init__(self, values: Mapping[str, str], plain: Collection[str] = ()) -> None:
        self._plain = plain
        self._added: set[tuple[str, str]] = set()
        self._names: dict[str, str] = {}
        self._broken: set[str] = set()
        self._anchors: tuple[bytes, ...] = ()
        self.add(values)

    def add(self, values: Mapping[str, str]) -> None:
        """Replace these as well."""
        plain = self._plain
        anchors = {*self._anchors}
        for name, value in values.items():
            if (name, value) in self._added:
                continue
            self._added.add((name, value))
            least = 8 if name in plain else 4
            parts = [value, *(line for line in value.splitlines() if len(line) >= 16 and line != value)]
            for part in parts:
                text = part.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                if len(text) >= least:
                    anchors |= _anchors(text)
                    for form in forms(text):
                        self._names.setdefault(form, f"[{name}]")
            if name not in plain:
                for form in encoded(value.encode("utf-8", "surrogateescape")):
                    if runs := _BASE64_RUN.findall(form):
                        anchors.add(max(runs, key=len).encode())
                        self._broken.add(form)
                        self._names.setdefault(form, f"[{name}]")
        self._anchors = tuple(anchors)
        vars(self).pop("_pattern", None)  # it is made of them when it is needed

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        ordered = sorted(self._names, key=len, reverse=True)
        return re.compile(
            "|".join(
                rf"(?:{_BREAK.pattern})?".join(map(re.escape, form)) if form in self._broken else re.escape(form)
                for form in ordered
            )
        )

    def may_hold(self, data: bytes) -> bool:
        """Whether JSON could hold a value. False is certain."""
        if not self._names:
            return False
        if any(anchor in data for anchor in self._anchors):
            return True
        # Nobody needs to escape a printable character, but one who does could spell any value with it. The first
        # test is the fastest that there is, and settles most batches.
        return b"\\" in data and rb"\u00" in data and _PRINTABLE_ESCAPE.search(data) is not None

    def text(self, text: str) -> str:
        """*text* without the values."""
        return self._pattern.sub(self._name, text) if self._names else text

    def error(self, error: ContainerRunnerError) -> None:
        """Take the values out of what an error says."""
        error.message, error.next_step, error.stderr = map(self.text, (error.message, error.next_step, error.stderr))
        error.args = (error.message,)

    def dump(self, value: Any) -> bytes:
        """A value as JSON, without the values in its strings."""
        try:
            return orjson.dumps(self._walk(value) if self._names else value)
        except (TypeError, ValueError, RecursionError):  # of a runtime's own making
            return orjson.dumps({"type": "output", "text": self.text(ascii(value))})

    def _name(self, match: re.Match[str]) -> str:
        return self._names.get(match[0]) or self._names[_BREAK.sub("", match[0])]

    def _walk(self, value: Any) -> Any:
        match value:
            case str():
                return self.text(value)
            case dict():
                return {self._key(key): self._walk_item(key, item) for key, item in value.items()}
            case list() | tuple():
                return [self._walk(item) for item in value]
            case int() | float() if not isinstance(value, bool):
                shown = repr(value)
                return self.text(shown) if len(shown) >= 8 and self.text(shown) != shown else value
            case _:
                return value

    def _key(self, key: Any) -> Any:
        # The protocol's own words stay what they are, even where a variable has such a value.
        return key if not isinstance(key, str) or _PROTOCOL_WORD.fullmatch(key) else self.text(key)

    def _walk_item(self, key: Any, item: Any) -> Any:
        if key in ("type", "subtype", "role") and isinstance(item, str) and _PROTOCOL_WORD.fullmatch(item):
            return item
        return self._walk(item)


def _anchors(value: str) -> set[bytes]:
    """Bytes of which JSON that holds the value has at least one, however it is escaped."""
    longest = max(_SAFE_RUN.findall(value), key=len, default="")
    if len(longest) >= min(4, len(value)):
        return {longest.encode()}
    return {rb"\u", *(form.encode() for form in forms(value))}
