"""Cleaning up, whatever is cancelled meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


async def settle(clean_up: Callable[[], Awaitable[T]]) -> T:
    """Run *clean_up* to its end, whatever is cancelled meanwhile, and then let the cancellation go on.

    A shield keeps anyio's own cancellation out. asyncio's `Task.cancel()` reaches into it, once for each call; so
    *clean_up* is begun again, and must be made for that.
    """
    cancelled: BaseException | None = None
    while True:
        try:
            with anyio.CancelScope(shield=True):
                result = await clean_up()
        except anyio.get_cancelled_exc_class() as error:
            cancelled = error
        else:
            if cancelled is not None:
                raise cancelled
            return result
