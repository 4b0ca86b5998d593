"""Who misspells a key is told which one was meant, and no value is repeated."""

from __future__ import annotations

from typing import Any

import pytest

from container_runner.config.keys import refuse_key
from container_runner.config.laws import NOT_SHOWN
from container_runner.errors import ConfigError

FEW = ("memory", "network", "workspace")
MANY = (*FEW, *"abcdefg")


@pytest.mark.parametrize(
    ("key", "known", "more", "field", "allowed"),
    [
        ("memry", FEW, {}, "memry", "perhaps memory; the keys are memory, network, workspace"),
        ("memry", MANY, {}, "memry", "perhaps memory; `container-runner config` lists all keys"),
        ("memry", MANY, {"listed": "see there"}, "memry", "perhaps memory; see there"),
        ("zzzzzz", FEW, {"where": "tables[0]."}, "tables[0].zzzzzz", "the keys are memory, network, workspace"),
        ("memry", FEW, {"prefix": "X_"}, "X_MEMRY", "perhaps X_MEMORY; the keys are memory, network, workspace"),
        ("netWork", ("net_work",), {}, "netWork", "net_work, as it is called here"),
        ("mem-limit", FEW, {}, "mem-limit", "memory (mem-limit is another tool's name for it)"),
        ("cwd", FEW, {}, "cwd", "workspace (cwd is another tool's name for it)"),
        ("cwd", ("memory",), {}, "cwd", "--workspace on the command line (cwd is another tool's name for it)"),
        ("a\x1b[31m", FEW, {}, "a key", "the keys are memory, network, workspace"),
        (3, FEW, {}, "a key", "the keys are memory, network, workspace"),
    ],
)
def test_a_key_that_nobody_knows(key: object, known: tuple[str, ...], more: Any, field: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_key(key, known, **more)

    assert (caught.value.field, caught.value.allowed) == (field, allowed)
    assert caught.value.value == NOT_SHOWN
