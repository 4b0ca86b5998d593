"""The caller's functions that the agent calls at points of its work. They run here, and not in the container."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import attrs

from container_runner.errors import ConfigError
from container_runner.session.asks import Ask, Deny, HookAnswer

BEFORE_TOOL: Final = "PreToolUse"
"""The event before a tool is used, which a hook may deny."""


@attrs.frozen(kw_only=True)
class HookCall(Ask):
    """The agent has come to a point where a `Hook` is called."""

    event: str
    """The hook's."""

    input: Mapping[str, Any] = attrs.field(factory=dict)
    """What the agent tells of it: "tool_name" and "tool_input", say. Paths are those of the container."""

    tool_use_id: str | None = None
    """The id of the `ToolUseBlock`, if it is about a tool."""

    hook: Hook = attrs.field(repr=False, eq=False)


HookFunction: TypeAlias = Callable[[HookCall], Awaitable[Deny | Mapping[str, Any] | None]]


def _checked(instance: Hook, attribute: attrs.Attribute[Any], value: object) -> None:
    del instance, attribute
    if not callable(value):
        raise ConfigError("hook.function", value, "an async function that takes a HookCall")


@attrs.frozen
class Hook:
    """An async function of the caller's, and when the agent is to call it, for `ContainerRunner.open_session`.

    The function returns None to let the agent go on, or a `Deny`: before a tool, that the tool is not used, and at any
    other event, that the turn ends. A mapping goes to the agent as it is, in the words of claude's hooks.

    One that fails or takes too long is a `Deny`, and what it has raised is raised where the caller reads.
    """

    event: str
    """"PreToolUse", "PostToolUse", "UserPromptSubmit", "Stop" and so on, as claude calls them."""

    function: HookFunction = attrs.field(validator=_checked, repr=False)

    matcher: str | None = None
    """For which tools, as claude has it: "Bash", "Edit|Write". None: for all."""

    timeout: float = attrs.field(default=60.0, kw_only=True)
    """Seconds that it may take."""


async def call_hook(call: HookCall) -> HookAnswer:
    """What the agent is told.

    Raises:
        ConfigError: the function has returned nothing of that kind.
        Exception: what the function has raised.
    """
    said = await call.hook.function(call)
    if said is None:
        return HookAnswer(output={})
    if isinstance(said, Deny):
        return denied(call, said)
    if not isinstance(said, Mapping):
        raise ConfigError("hook", said, "None, a Deny or a mapping, from a hook")
    return HookAnswer(output=said)


def denied(call: HookCall, deny: Deny) -> HookAnswer:
    """A denial, in claude's words."""
    if call.event != BEFORE_TOOL:
        return HookAnswer(output={"continue": False, "stopReason": deny.message})
    told = {"permissionDecision": "deny", "permissionDecisionReason": deny.message}
    stop = {"continue": False, "stopReason": deny.message} if deny.interrupt else {}
    return HookAnswer(output={"hookSpecificOutput": {"hookEventName": BEFORE_TOOL, **told}, **stop})
