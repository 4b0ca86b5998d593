"""Work that goes on at once, or while a block runs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final

import anyio
import anyio.abc

from container_runner.config.container import ContainerConfig
from container_runner.engine.manager import Containers
from container_runner.engine.pool import Pool
from container_runner.errors import ConfigError
from container_runner.stream.process import settle

PRUNE_TIMEOUT: Final = 5.0
"""Seconds that the first run gives to removing what dead processes have left."""

PRUNE_PATIENCE: Final = 1.0
"""Seconds of them that may pass when its agent has started: meanwhile nobody reads what it says."""

_log = logging.getLogger(__name__)


@asynccontextmanager
async def beside(
    work: Callable[[], Coroutine[Any, Any, object]], *, patience: float = 0.0
) -> AsyncIterator[anyio.abc.TaskGroup]:
    """Do some work while a block runs, and for *patience* seconds after it.

    What the block raises comes out as it is, and not in a group.
    """
    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        try:
            yield tasks
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # out of the task group, which would wrap it
            failure = error
        tasks.cancel_scope.deadline = anyio.current_time() + patience
    if failure is not None:
        raise failure


def check_pool(config: ContainerConfig, size: int) -> None:
    """See that containers can be kept ready.

    Raises:
        ConfigError: they can not.
    """
    if config.workspace_mode == "carried":
        allowed = '"rw" or "ro" for warm containers: a carried workspace begins with the files as they are then'
        raise ConfigError("workspace_mode", "carried", allowed)
    if size < 1 or not config.ephemeral:
        raise ConfigError("pool", size, "a number from 1, and ephemeral containers")


@asynccontextmanager
async def filled(pool: Pool, pools: dict[str, Pool], agent: str) -> AsyncIterator[None]:
    """Keep a pool full while a block runs, as the one of its agent in *pools*.

    Raises:
        ConfigError: the agent has one.
    """
    if agent in pools:
        raise ConfigError("pool", agent, "one pool for an agent at a time")
    pools[agent] = pool
    try:
        async with beside(pool.fill):
            yield
    finally:
        del pools[agent]
        await settle(pool.close)


def pruning(manager: Containers) -> AbstractAsyncContextManager[object]:
    """Remove what dead processes have left, while a block runs."""
    return beside(partial(_prune, manager), patience=PRUNE_PATIENCE)


async def _prune(manager: Containers) -> None:
    try:
        with anyio.move_on_after(PRUNE_TIMEOUT):
            for info in await manager.prune():
                _log.info("removed %s, whose owner is dead", info.name)
    except Exception as error:  # whatever is wrong with what others left, this run has nothing to do with it
        _log.info("looking for what dead processes left: %s", error)


async def together(*functions: Callable[[], Awaitable[bool]]) -> bool:
    """Wait for all of these at once; tell whether all are true. The first that is not, or fails, ends the others.

    Raises:
        Exception: what one of them has raised, as it is.
    """
    failures: list[Exception] = []
    is_true = True

    async def one(function: Callable[[], Awaitable[bool]]) -> None:
        nonlocal is_true
        try:
            went_well = await function()
        except Exception as error:  # out of the task group, which would wrap it
            failures.append(error)
            went_well = False
        if not went_well:
            is_true = False
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for function in functions:
            tasks.start_soon(one, function)
    if failures:
        raise failures[0]
    return is_true
