"""The tool calls of a run, for dialects whose result does not tell which of them were refused."""

from __future__ import annotations

from container_runner.stream.blocks import as_text
from container_runner.stream.reader import Folded, called

MOST = 1000
"""How many calls are kept in mind, of those that are open and of those that were refused. An agent that leaves more
of them open is not at work, and its calls would fill the memory."""


class Calls:
    """Which calls are open, and which were refused."""

    def __init__(self) -> None:
        self._open: dict[str, Folded] = {}
        self.denials: list[Folded] = []
        """What was refused, as `ResultMessage.permission_denials` has it."""

    def __contains__(self, id: object) -> bool:  # noqa: A002  as in `called`
        return as_text(id) in self._open

    def begin(self, id: object, name: object, arguments: object) -> Folded:  # noqa: A002  as above
        """The call as a block."""
        block = called(id, name, arguments)
        if len(self._open) < MOST:
            self._open[block["id"]] = block
        return block

    def end(self, id: object, *, denied: bool) -> None:  # noqa: A002  as above
        """A call has given something back, be it that it was *denied*."""
        block = self._open.pop(as_text(id), None) or called(id, "", {})
        if denied and len(self.denials) < MOST:
            names = {"tool_use_id": "id", "tool_name": "name", "tool_input": "input"}
            self.denials.append({name: block[key] for name, key in names.items()})
