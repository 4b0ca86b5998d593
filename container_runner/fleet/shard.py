"""A part of a batch, for one of several machines."""

from __future__ import annotations

import re
from typing import Self

import attrs

from container_runner.errors import ConfigError

_FORM = re.compile(r"([0-9]{1,7})/([0-9]{1,7})", re.ASCII)


@attrs.frozen
class Shard:
    """Every *of*-th job of a batch, beginning with the *number*-th: all shards together are all jobs, each once."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard that "3/20" names, the third of twenty.

        Raises:
            ConfigError: it names none.
        """
        found = _FORM.fullmatch(text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError("--shard", text, "a shard and how many there are, as 3/20; the first one is 1")
        return cls(int(found[1]), int(found[2]))

    def has(self, position: int) -> bool:
        """Whether the job at this position of the file is in the shard. The first one is at 1."""
        return position % self.of == self.number % self.of
