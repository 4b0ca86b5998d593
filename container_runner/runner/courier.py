"""Brings an agent's sessions into a box that can not see them, and back."""

from __future__ import annotations

import logging

import anyio

from container_runner.box.plan import Plan
from container_runner.engine.engine import Engine
from container_runner.engine.failures import classify
from container_runner.errors import ContainerRunnerError, StateError
from container_runner.records.recorder import Recorder
from container_runner.stream.command import Completed
from container_runner.workspace.session_files import LIMIT, pack, unpack
from container_runner.workspace.tar import Source

FETCH_TIMEOUT = 120.0
"""Seconds that the sessions may take on their way, there or back."""

_log = logging.getLogger(__name__)


async def send_sessions(engine: Engine, plan: Plan) -> None:
    """Send the sessions of an agent that goes on with one.

    Raises:
        EngineError: they do not arrive.
        TimeoutError: not in time.
    """
    if not plan.mounted.sent or not plan.resumes:
        return
    command = plan.send_in(plan.container)
    with anyio.fail_after(FETCH_TIMEOUT):
        async with engine.pipe(command, pack(plan.sessions, plan.mounted.sent)) as pipe:
            said = [chunk async for chunk in pipe]
            code = await pipe.wait()
    if code != 0:
        raise classify(Completed(returncode=code, stdout=b"".join(said), stderr=pipe.stderr), "exec")


async def fetch_sessions(engine: Engine, plan: Plan, record: Recorder, *, timeout: float = FETCH_TIMEOUT) -> None:
    """Fetch what the sessions have become, where they are not mounted.

    The run has come to its end, and is not to fail if they can not be: that is written down.
    """
    if not plan.mounted.sent:
        return
    try:
        with anyio.fail_after(timeout):
            async with engine.pipe(plan.fetch_in(plan.container), None) as pipe:
                await unpack(Source(pipe, LIMIT), plan.sessions, plan.mounted.sent)
                if await pipe.wait() != 0:
                    raise StateError(pipe.stderr.strip()[-200:] or "the box did not tell them")
    except TimeoutError:
        reason = f"it took longer than {timeout:g} seconds."
    except ContainerRunnerError as error:
        reason = error.message
    except Exception as error:  # whatever a hostile box has brought about, the run's end goes on
        _log.debug("the sessions of run %s", plan.run_id, exc_info=True)
        reason = repr(error)
    else:
        return
    _log.warning("the sessions of run %s are not fetched: %s", plan.run_id, reason)
    record.note("sessions", lost=reason)
