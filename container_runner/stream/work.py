"""What an agent has still to do, as far as its messages tell."""

from __future__ import annotations

from typing import Final

from container_runner.stream.messages import (
    AssistantMessage,
    HookEventMessage,
    Message,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    TaskNotificationMessage,
    TaskStartedMessage,
    TaskUpdatedMessage,
    ToolProgressMessage,
    UserMessage,
)

SHELL: Final = "local_bash"
"""The type of a task that no agent waits for: a command in the background, such as a server."""

MOST: Final = 10_000
"""How many tasks and hooks are kept in mind, so that an agent can not fill our memory with their names."""

_RUNNING: Final = ("pending", "running", "paused")


class Work:
    """Whether an agent is at work. Only a result says that a turn is over, and what comes later begins the next.

    A background task and a hook are work from their first line to their last.
    """

    def __init__(self) -> None:
        self.done_at: float | None = None
        """When there was nothing left to do, on the caller's clock; None while there is."""
        self.last_told: UserMessage | None = None
        """What the agent was told last, which is mostly what its tools gave back."""
        self._in_turn = True
        self._open: set[int] = set()

    def take(self, message: Message, now: float) -> None:
        """Hear the next message, which came at *now*."""
        match message:
            case UserMessage():
                self._in_turn, self.last_told = True, message
            case AssistantMessage() | StreamEvent() | ToolProgressMessage() | SystemMessage(is_init=True):
                self._in_turn = True
            case ResultMessage():
                self._in_turn, self.done_at = False, now
            case TaskStartedMessage():
                self._hold(message.task_id, is_held=message.task_type != SHELL)
            case TaskNotificationMessage():
                self._hold(message.task_id, is_held=False)
            case TaskUpdatedMessage() if message.status and message.status not in _RUNNING:
                self._hold(message.task_id, is_held=False)
            case HookEventMessage():
                self._hold(message.raw.get("hook_id"), is_held=message.subtype == "hook_started")
            case _:
                return
        if self._in_turn or self._open:
            self.done_at = None
        elif self.done_at is None:
            self.done_at = now

    def _hold(self, what: object, *, is_held: bool) -> None:
        if not is_held:
            self._open.discard(hash(str(what)))
        elif len(self._open) < MOST:
            self._open.add(hash(str(what)))
