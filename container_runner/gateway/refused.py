"""What is answered to a request that is not carried out."""

from __future__ import annotations


class Refused(Exception):  # noqa: N818  it is an answer, not a fault
    """A request that is not carried out, with the HTTP status that tells of it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason

    @property
    def is_denial(self) -> bool:
        """Whether the policy or the protocol forbids it, and nothing has failed."""
        return self.status < 500 and self.status != 408


class Unsent(Refused):
    """A request that a service was not sent, for it had hung up."""
