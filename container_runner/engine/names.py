"""What an image has in its /etc/passwd, read by the engine alone: no program of the image is run for it.

See `container_runner.box.passwd` for what it is read for, and where it is kept.
"""

from __future__ import annotations

import io
import logging
import re
import secrets
from functools import partial
from typing import Final

import anyio

from container_runner.box import argv, script
from container_runner.box.passwd import LIMIT, TARGET
from container_runner.box.plan import Plan
from container_runner.engine.engine import RUN_TIMEOUT, Engine
from container_runner.engine.manager import (
    CLEANUP_TIMEOUT,
    DEADLINE_LABEL,
    DEADLINE_SLACK,
    NAME_LABEL,
    RUN_LABEL,
    agent_labels,
)
from container_runner.engine.owner import Owner
from container_runner.errors import EngineError, EngineTimeoutError
from container_runner.stream.process import settle

PATIENCE: Final = 30.0
"""Seconds that the engine may be silent while it hands out the file."""

_AROUND: Final = 64 * 1024
"""The most bytes of an archive beside its one file."""

_log = logging.getLogger(__name__)


async def learn(engine: Engine, plan: Plan) -> None:
    """Read what the image of *plan* has there, from a container that is never started, and keep it for later plans.

    A container has said before that its user has no name in there, and that it is a file (podman follows a link).
    The image's id is the container's own, so that the two belong together whatever becomes of the name meanwhile.

    Raises:
        EngineError: the container can not be made.
        StateError: the state folder can not be written.
    """
    assert plan.passwd is not None  # noqa: S101  who has none is not asked
    name = f"container-runner-passwd-{plan.run_id[:12]}-{secrets.token_hex(3)}"
    labels = {
        **agent_labels(plan.agent, plan.state_dir, ephemeral=True),
        RUN_LABEL: plan.run_id,
        NAME_LABEL: name,
        DEADLINE_LABEL: str(int(plan.ends_at) + DEADLINE_SLACK),
        **Owner.current().to_labels(),
    }
    command = argv.create_argv(engine.binary, engine.dialect, name=name, image=plan.image, labels=labels)
    try:
        await engine.run(command, timeout=RUN_TIMEOUT)
        image = next((info.image for info in await engine.inspect([name])), "")
        if not re.fullmatch("[0-9a-f]{64}", image):
            raise EngineError(f"The engine does not tell of which image {name} is.")
        content = await _read(engine, name)
    finally:
        await settle(partial(_remove, engine, name))
    plan.passwd.keep(image, content)


async def fits(engine: Engine, plan: Plan) -> bool:
    """Whether the container of *plan* is of the image whose names are mounted in it. If not, they are forgotten.

    Raises:
        EngineError: it can not be told.
        StateError: the state folder can not be written.
    """
    if plan.passwd is None or not plan.passwd.is_given:
        return True
    infos = await engine.inspect([plan.container])
    if not infos or plan.is_made_of(infos[0].image):  # one that has gone has its own way of telling
        return True
    plan.passwd.forget()
    return False


async def is_named(engine: Engine, plan: Plan) -> bool:
    """Whether the user of *plan* has a name in its container, or can not be given one. If not, the next plan differs.

    Raises:
        EngineError: it can not be told.
        StateError: the state folder can not be written.
    """
    if plan.passwd is None or plan.passwd.image:
        return await fits(engine, plan)
    done = await engine.run(argv.named_argv(engine.binary, name=plan.container, user=plan.user), check=False)
    if done.returncode != script.EXIT_NAMELESS:
        return True
    await learn(engine, plan)
    return False


async def _read(engine: Engine, name: str) -> bytes | None:
    """What the file holds; None if it is none that can be taken over."""
    said, code = bytearray(), 0
    try:
        async with engine.pipe(argv.copy_argv(engine.binary, name=name, path=TARGET), patience=PATIENCE) as pipe:
            async for chunk in pipe:
                said += chunk
                if len(said) > LIMIT + _AROUND:
                    return None
            code = await pipe.wait()
    except TimeoutError:
        raise EngineTimeoutError(f"The engine was silent for {PATIENCE:g} seconds.") from None
    if code == 0:
        return _only_file(bytes(said))
    if re.search("could not find the file|no such file", pipe.stderr, re.IGNORECASE):
        return b""
    _log.info("%s of %s can not be read: %s", TARGET, name, pipe.stderr.strip())
    return None


def _only_file(archive: bytes) -> bytes | None:
    """What is in the file that an archive begins with; None if that is a link or something else."""
    import tarfile

    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            member = tar.next()
            file = tar.extractfile(member) if member is not None and member.isreg() else None
            content = None if file is None else file.read()
    except (tarfile.TarError, OSError, ValueError):
        return None
    return content if content is not None and len(content) <= LIMIT else None


async def _remove(engine: Engine, name: str) -> None:
    try:
        with anyio.move_on_after(CLEANUP_TIMEOUT):
            await engine.remove(name)
    except EngineError as error:  # whoever prunes finds it
        _log.warning("%s may be left: %s", name, error.message)
