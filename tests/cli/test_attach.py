"""`container-runner attach`: what it needs, and what it refuses."""

from __future__ import annotations

import pytest

from tests.small_engine import SmallEngine, call


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory) -> SmallEngine:
    return SmallEngine.make(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "attach needs a terminal; without one, use `container-runner run` or `chat`"),
        (("--json",), "an agent's screen is for people"),
    ],
)
def test_it_is_for_a_person(
    flags: tuple[str, ...], told: str, engine: SmallEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    done = call(capfd, "attach", "--image=my/claude", *flags, *engine.flags)

    assert done.code == 2
    assert told in done.err
    assert engine.calls == []
