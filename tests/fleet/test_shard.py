"""A part of a batch, for one of several machines."""

from __future__ import annotations

import pytest

from container_runner.errors import ConfigError
from container_runner.fleet.shard import Shard


@pytest.mark.parametrize("of", [1, 3, 20])
def test_all_shards_together_have_every_job_once(of: int) -> None:
    shards = [Shard.parse(f"{number}/{of}") for number in range(1, of + 1)]

    assert [sum(shard.has(position) for shard in shards) for position in range(1, 50)] == [1] * 49
    assert next(position for position in range(1, 50) if shards[0].has(position)) == 1
    assert not shards[-1].has(of - 1) or of == 1


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "-1/3", "1/3/3", "1 / 3", "٣/٤", "1/99999999"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"as 3/20; the first one is 1"):
        Shard.parse(text)
