"""A session of one prompt, for an agent that gets its prompt in no other way."""

from __future__ import annotations

import uuid

import attrs

from container_runner.errors import ContainerRunnerError, ResultTimeoutError
from container_runner.session.asks import Ask, Deny
from container_runner.session.codec import Event, Ready, TurnEnded
from container_runner.session.session import Session
from container_runner.stream.messages import Message


@attrs.define(eq=False, repr=False)
class OnePrompt(Session):
    """Gives the agent its prompt once it is ready, and ends its input when it has answered.

    Nobody reads the session itself: what the agent says is what the run says.
    """

    prompt: str = attrs.field(default="", kw_only=True)

    patience: float | None = attrs.field(default=None, kw_only=True)
    """Seconds that the agent may take to leave, see `ExecuteOptions.result_timeout`."""

    def take(self, event: Event, size: int = 0) -> None:
        """Hear the next event."""
        match event:
            case Ready():
                super().take(event, size)
                name = str(uuid.uuid4())
                self._open[name] = None
                self._give(self.codec.prompt(self.prompt, id=name))
            case Ask():
                self._give(self.codec.reply(event, Deny(message="Nobody is there who could be asked.")))
            case TurnEnded():
                self._open.clear()
                self.is_closing = True
                if self._feed is not None:
                    self._feed.close_stdin()
                if self.patience is not None:
                    message = f"The agent was still there {self.patience:g} seconds after its last result."
                    self._deadline("close", self.patience, ResultTimeoutError(message))
            case _ if not isinstance(event, Message):
                super().take(event, size)
            case _:
                pass

    def outcome(self, failure: ContainerRunnerError | None, exit_code: int) -> ContainerRunnerError | None:
        """What its runtime says: of one prompt, a turn that failed is a run that failed."""
        del exit_code
        return failure
