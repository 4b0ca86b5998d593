"""The ways in which a secret can be spelled, and an answer without it."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

LEAST = 4
"""How many bytes a secret must have to be looked for. What is shorter is in many a text by chance."""


def forms(value: str) -> Iterator[str]:
    """The ways in which a text can spell a value: as it is, as a URL or a page has it, as JSON of several libraries, or
    as JSON in JSON."""
    yield value
    for safe in ("", "/"):
        percent = quote(value, safe=safe)
        yield from (percent, re.sub("%..", lambda found: found[0].lower(), percent), percent.replace("%20", "+"))
    for ascii_only in (False, True):
        escaped = value
        for _ in range(2):
            escaped = json.dumps(escaped, ensure_ascii=ascii_only)[1:-1]
            yield escaped
    yield from (value.replace("/", "\\/"), html.escape(value))  # PHP's JSON, and a page
    for odd in ("[&<>]", "[&<>'=]", "[&<>'=+/]"):  # Go's JSON, Java's, and more than any
        for form in ("\\u{:04x}", "\\u{:04X}"):
            yield re.sub(odd, lambda found, form=form: form.format(ord(found[0])), value)


def encoded(value: bytes) -> Iterator[str]:
    """What of a value's base64 depends on nothing else, for each of the three places where it may begin."""
    if len(value) < 8:
        return
    for before, first in ((0, 0), (1, 2), (2, 3)):
        end = (before + len(value)) * 8 // 6
        for alphabet in (b"+/", b"-_"):
            yield base64.b64encode(bytes(before) + value, alphabet)[first:end].decode()


class Veil:
    """Puts `*` in the place of secrets in a stream of bytes, however that is cut. The length stays.

    What is spelled otherwise, as in another case, passes: who can have a service do that can have the secret.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        spelled = {form.encode() for secret in secrets for form in (*forms(secret), *encoded(secret.encode()))}
        self._forms = tuple(sorted((form for form in spelled if len(form) >= LEAST), key=len, reverse=True))
        self._pattern = re.compile(b"|".join(map(re.escape, self._forms)))
        self._most = len(self._forms[0]) - 1 if self._forms else 0
        self._has_lines = any(b"\n" in form for form in self._forms)
        self._held = b""

    def hide(self, data: bytes) -> bytes:
        """Bytes that nothing follows."""
        return self._pattern.sub(lambda found: b"*" * len(found[0]), data) if self._forms else data

    def feed(self, data: bytes) -> bytes:
        """What can go on of bytes that others follow: all but as many at their end as a secret may be long."""
        data = self._held + data
        # How much is held back must not depend on the secret: who sees how much came could guess its beginning.
        line = 0 if self._has_lines else data.rfind(b"\n") + 1  # no secret goes beyond it, so that events come at once
        cut = max(len(data) - self._most, line, 0)
        for found in self._pattern.finditer(data) if self._forms and cut < len(data) else ():
            if found.start() < cut < found.end():
                cut = found.start()
        self._held = data[cut:]
        return self.hide(data[:cut])

    def rest(self) -> bytes:
        """What was held back, at the end of the stream."""
        held, self._held = self._held, b""
        return self.hide(held)
