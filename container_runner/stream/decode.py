"""From the bytes of a line to its value, whatever an agent wrote, within a budget."""

from __future__ import annotations

import json
import re
from collections.abc import Container
from itertools import islice
from typing import Any

import orjson

DEPTH = 254
"""How many levels of nesting a line may have to be decoded: what orjson reads (1024) and also writes."""

VALUES = 250_000
"""How many values (objects, lists, texts, numbers) a line may hold to be decoded, about. A value may take 3 bytes of
a line and 150 of memory: 60 MB of `[],[],…` would fill 3 GB. With this, a message costs 40 MB at most, and four times
the length of its line for the texts; while it is made, twice that."""

TRIES = 16
"""How many places in a line that is no JSON object may look like the beginning of one, and be none."""

SHORT = 2 * DEPTH
"""A line of fewer bytes is within the budget, whatever it holds."""

# All up to the next comma or opening bracket that stands in no text, or the end. Nothing is looked at twice.
_PIECE = re.compile(rb'(?:[^"\[{,]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"?)*+(?:[\[{,]|\Z)', re.DOTALL)
_OPENING = re.compile(rb'\{\s*"')
# Escape sequences (CSI; OSC, DCS and the like with their texts; the short ones), BOMs, blanks and control characters.
_NOISE = re.compile(
    rb"(?:\x1b\[[0-?]*+[ -/]*+[@-~]|\x1b[]PX^_][^\x07\x1b]*+(?:\x07|\x1b\\)|\x1b[ -/]*+[0-~]"
    rb"|\xef\xbb\xbf|[\0-\x20\x7f])*+"
)
_decoder = json.JSONDecoder(strict=False)
_HALF = re.compile(
    rb"(\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|\\[^u])|\\u[dD][89a-fA-F][\da-fA-F]{2}", re.DOTALL
)


def cost(line: bytes) -> int:
    """About how many bytes of memory a line and its message take, at most."""
    return 256 + 2 * len(line) + 80 * (_opened(line) + line.count(b","))


def fits(line: bytes) -> bool:
    """Whether a line is within `DEPTH` and `VALUES`. Brackets and commas in its texts do not count."""
    if len(line) < SHORT:
        return True
    opened = _opened(line)
    may_exceed = len(line) > VALUES and opened + line.count(b",") > VALUES
    if may_exceed and next(islice(_PIECE.finditer(line), VALUES, None), None) is not None:
        return False
    if opened <= DEPTH:
        return True
    try:
        orjson.dumps(load(line))
    except orjson.JSONEncodeError:
        return False
    return True


def load(line: bytes) -> Any:
    """The line's value, with what `mend` mends, and with numbers that no float holds as infinite.

    None if it still is no JSON object.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        if not line.lstrip().startswith(b"{"):
            return None
    line = mend(line)
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(line.decode(), parse_int=_integer, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def unmix(line: bytes, types: Container[object]) -> list[bytes]:
    """The parts of a line that is no JSON object and has some in it, in their order, as if each were a line.

    Programs write escape sequences, a BOM or half a line of text in front of an agent's line, or behind it. What is
    only noise is left out. Beside words, which are parts too, an object counts if its "type" is one of *types*: a text
    may well quote one.

    Returns:
        No part if there is no object in it, or the line is over the budget.
    """
    if _OPENING.search(line) is None or not fits(line):
        return []
    text = line.decode("latin-1")  # a character a byte, and JSON's own are ASCII
    found: list[tuple[int, int, bool]] = []
    at, tries = 0, TRIES
    while tries and (opening := _OPENING.search(line, at)):
        start = at = opening.start()
        try:
            value, at = _decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            at, tries = start + 1, tries - 1
        else:
            kind = value.get("type")
            found.append((start, at, isinstance(kind, str) and kind in types))
    ends = [0, *(end for _, end, _ in found)]
    starts = [*(start for start, _, _ in found), len(line)]
    if not all(_NOISE.fullmatch(line, end, start) for end, start in zip(ends, starts, strict=True)):
        found = [(start, end, is_known) for start, end, is_known in found if is_known]
    parts, at = [], 0
    for start, end, _ in found:
        parts += [line[at:start], line[start:end]]
        at = end
    return [part for part in (*parts, line[at:]) if not _NOISE.fullmatch(part)] if found else []


def mend(line: bytes) -> bytes:
    r"""The line with U+FFFD in the place of what no decoder takes, and agents write.

    Those are bytes that are not UTF-8, and half of a surrogate pair, which JavaScript writes (`"\ud83d"`) wherever it
    cut a text inside an emoji.
    """
    return _HALF.sub(lambda found: found[1] or b"\xef\xbf\xbd", line.decode(errors="replace").encode())


def _opened(line: bytes) -> int:
    return line.count(b"{") + line.count(b"[")


def _integer(digits: str) -> float:
    """As orjson has it: what 64 bits do not hold is a float."""
    value = float(digits)
    return int(digits) if -(2.0**63) <= value < 2.0**64 else value


def _no_constant(name: str) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(name)
