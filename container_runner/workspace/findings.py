"""What came out of a box and should be looked at by a person, or was not taken over."""

from __future__ import annotations

import attrs


@attrs.frozen
class Finding:
    """One path that came out of a box, and what is to be said of it."""

    kind: str
    """What it is, in a few words that do not change: "hard link", "too large"."""

    path: bytes
    """Relative to the workspace, as the file system spells it. Made by an agent: show it quoted."""
