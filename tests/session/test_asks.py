"""Which answer fits which ask."""

from __future__ import annotations

import pytest

from container_runner.session.asks import (
    Allow,
    Ask,
    Deny,
    PermissionRequest,
    Question,
    Reply,
    ToolAnswer,
    ToolCall,
    fits,
)

DECISIONS = (Allow(), Deny(), Reply(answers={}), ToolAnswer(content=()))


@pytest.mark.parametrize(
    ("ask", "fitting"),
    [
        (PermissionRequest(id="1", tool_name="Bash"), {Allow, Deny}),
        (Question(id="1", parts=()), {Reply, Deny}),
        (ToolCall(id="1", name="add"), {ToolAnswer}),
        (Ask(id="1"), set()),
    ],
)
def test_a_decision_fits_its_kind_of_ask(ask: Ask, fitting: set[type]) -> None:
    assert {type(decision) for decision in DECISIONS if fits(ask, decision)} == fitting
    assert not fits(ask, True)
