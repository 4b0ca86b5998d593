"""Why a run's container, or the client that it was spoken to by, ended before the agent had."""

from __future__ import annotations

import time
from typing import Final

from container_runner.box import script
from container_runner.box.plan import Plan
from container_runner.engine.engine import ContainerInfo, Engine
from container_runner.engine.failures import classify
from container_runner.engine.manager import DAEMON_LOST
from container_runner.errors import (
    AgentKilledError,
    CleanupError,
    ContainerGoneError,
    ContainerRunnerError,
    EngineError,
    EngineUnreachableError,
    ExecLostError,
    OutOfMemoryError,
)
from container_runner.stream.beat import PATIENCE
from container_runner.stream.command import Completed
from container_runner.stream.stream import RAISE_LIMIT

KILLED: Final = 128 + 9
"""The exit code of a container whose PID 1 was killed."""


async def why_lost(engine: Engine, plan: Plan, exit_code: int, stderr: str, *, since: float) -> ContainerRunnerError:
    """Why our script did not live to see the agent's end.

    Args:
        exit_code: that of the engine's client.
        stderr: what it wrote.
        since: when it was started, in seconds since the epoch.
    """
    if is_overdue(plan):
        return gone(plan, exit_code=exit_code, stderr=stderr)
    if exit_code < 0:
        message = "The engine's client was killed before the agent had ended."
        return ExecLostError(message, exit_code=exit_code, stderr=stderr)
    try:
        info = await info_of(engine, plan)
        ran_out = info is not None and info.oom_killed and not info.is_running
        if exit_code == KILLED and info is None:
            ran_out = await engine.ran_out_of_memory(plan.container, since=since)
    except EngineError as error:
        return error
    if ran_out:
        return OutOfMemoryError("The container ran out of memory.", exit_code=exit_code, stderr=stderr)
    if exit_code == DAEMON_LOST:
        message = "The engine's daemon went away while the agent was at work, and the agent was not told."
        return EngineUnreachableError(message, exit_code=exit_code, stderr=stderr)
    if exit_code == 0 and not plan.ephemeral:  # no script ends like this: a client that was told to go
        message = "The engine's client was ended before the agent was."
        return ExecLostError(message, exit_code=exit_code, stderr=stderr)
    if exit_code == script.EXIT_LOST or (info is not None and info.is_running):
        message = "Our script around the agent was killed inside the container."
        return AgentKilledError(message, signal=9, exit_code=exit_code, stderr=stderr)
    return gone(plan, exit_code=exit_code, stderr=stderr)


async def why_not_started(engine: Engine, plan: Plan, done: Completed) -> EngineError:
    """Why the engine's client has ended, as *done* tells, before our script has said anything."""
    error = classify(done, "run" if plan.ephemeral else "exec")
    if type(error) is not EngineError:
        return error
    if plan.ephemeral:
        has_ended = not 0 < done.returncode - 124 < 4  # 125 to 127 are the engine's own
    else:
        try:
            info = await info_of(engine, plan)
        except EngineError:
            return error
        has_ended = info is None or not info.is_running
    # An engine has many words, or none at all, for an exec whose container ends at that moment.
    message = "The container ended while the agent was started in it."
    return ContainerGoneError(message, exit_code=done.returncode, stderr=done.stderr) if has_ended else error


def is_overdue(plan: Plan) -> bool:
    """Whether the container's time limit is over."""
    return time.time() >= plan.ends_at - 1


def gone(plan: Plan, *, exit_code: int | None = None, stderr: str = "") -> ContainerGoneError:
    """The error for a container that ended while the agent ran."""
    if not is_overdue(plan):
        message, step = "The container ended while the agent ran.", None
    else:
        message = f"The container's time limit, {plan.time_limit} seconds, ended while the agent ran."
        step = RAISE_LIMIT
    return ContainerGoneError(message, next_step=step, exit_code=exit_code, stderr=stderr)


def out_of_reach() -> EngineUnreachableError:
    """The error for an agent on another machine, of which nothing is heard any more."""
    message = f"The engine does not answer any more: the agent there ends by itself within {2 * PATIENCE} seconds."
    step = "See to the way there, and type `container-runner changes`: it fetches what the agent has done."
    return EngineUnreachableError(message, next_step=step)


async def info_of(engine: Engine, plan: Plan) -> ContainerInfo | None:
    """What the engine knows of a plan's container; None if it is not there any more."""
    infos = await engine.inspect([plan.container])
    return infos[0] if infos else None


def left_over(what: str, error: Exception, *names: str) -> CleanupError:
    """The error for what may be left, because of *error*: containers and volumes with these *names*, or a folder."""
    if isinstance(error, TimeoutError):
        return CleanupError(f"Cleaning up took too long; {what} may be left.", left=names)
    if isinstance(error, ContainerRunnerError):
        return CleanupError(f"{what} may be left. {error.message}", left=names, stderr=error.stderr)
    return CleanupError(f"{what} may be left: {error!r}.", left=names)
