"""Whether a run would work on this machine: each thing that it needs as a check, with the line to type if it fails.

Nothing is guessed that can be tried: the checks of the box come from a real run, with your very flags, user, mounts
and variables, in which a small script stands where the agent would.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

import attrs
import orjson

from container_runner.box import argv
from container_runner.box.environment import host_environment
from container_runner.doctor import checks
from container_runner.doctor.checks import NAMES, Check
from container_runner.doctor.inside import check_inside, look_inside
from container_runner.doctor.reach import check_reach, login_host
from container_runner.engine.engine import Engine
from container_runner.engine.failures import classify
from container_runner.errors import ConfigError, ContainerRunnerError, EngineError, EngineNotFoundError
from container_runner.options import ExecuteOptions
from container_runner.runner import ContainerRunner

Prepare = Callable[[], tuple[ContainerRunner, ExecuteOptions]]


async def examine(prepare: Prepare, *, engine: str = "auto") -> AsyncGenerator[Check, None]:
    """Make the checks, and yield one `Check` for each of `NAMES`. None of them fails if, and only if, a run works.

    It leaves nothing behind, but what it learns of an image's names in a state folder that was there. Like the first
    run of a runner it removes containers whose owner is dead.

    Args:
        prepare: makes the runner and the options of the run in question; a `ConfigError` of it is a check that failed.
        engine: the engine to look at if *prepare* fails.
    """
    seen: set[str] = set()
    async with aclosing(_examine(prepare, engine)) as found:
        async for check in found:
            seen.add(check.name)
            yield check
    for name in NAMES:
        if name not in seen:
            yield Check(name=name, status="skip", found="not looked at, because of what failed above")


async def _examine(prepare: Prepare, wanted: str) -> AsyncGenerator[Check, None]:
    runner: ContainerRunner | None = None
    options: ExecuteOptions | None = None
    refused: ConfigError | None = None
    try:
        runner, options = prepare()
        wanted = runner.config.engine
        with suppress(EngineNotFoundError):  # the engine has a check of its own
            plan = runner.plan(options)
            yield checks.passed("configuration", f"agent {options.agent.name} in the image {runner.config.image}")
            command = runner.runtime.command(options, contained=True)
            yield checks.check_credentials(runner.config, command.credentials, plan)
            yield checks.check_secrets(runner.config, plan)
    except ConfigError as error:
        options, refused = None, error
        if checks.refusal(error) in ("configuration", "credentials", "secrets"):
            yield checks.check_refused(error, runner, wanted, None)
            refused = None
    engine: Engine | None = None
    try:
        engine = await Engine.probe(wanted, host_environment())
        yield checks.check_engine(engine)
        info = await _ask(engine, argv.info_argv(engine.binary))
        versions = await _ask(engine, argv.version_argv(engine.binary))
    except ContainerRunnerError as error:
        # First, for the advice on what else was refused may need an engine.
        yield checks.without_engine(error, wanted) if engine is None else checks.without_daemon(error, engine)
        if refused is not None:
            yield checks.check_refused(refused, runner, wanted, engine)
        return
    yield checks.check_daemon(engine, info)
    yield checks.check_rootless(engine, info)
    yield checks.check_versions(engine, info, versions)
    yield checks.check_selinux(None if runner is None else runner.config)
    if refused is not None:
        yield checks.check_refused(refused, runner, wanted, engine)
    if runner is None:
        yield checks.check_limits(engine, info, None, {})
        return
    image = await checks.check_image(engine, runner.config)
    if image.status == "fail" or options is None:
        yield image
        yield checks.check_limits(engine, info, None, {})
        return
    inside, failure = await look_inside(runner, options)
    failed = None if failure is None else checks.check_failed(failure, engine, runner.config)
    if failed is None or failed.name != "image":
        yield image
    if failed is not None:
        yield failed
        yield checks.check_limits(engine, info, None, {})
        return
    plan = runner.plan(options)
    login = login_host(runner.runtime.command(options, contained=True).credentials, plan)
    reach = plan.gateway if runner.config.network == "gateway" else None  # for tools alone there may be one, too
    for check in check_inside(runner, options, engine, info, inside):
        yield await check_reach(reach, login) if check.name == "network" and reach is not None else check
    yield checks.check_limits(engine, info, runner.config, inside)


async def _ask(engine: Engine, command: Sequence[str]) -> Mapping[str, Any]:
    done = await engine.run(command, check=False)
    if done.returncode != 0:  # docker then prints a JSON object all the same, with nothing in it
        raise classify(attrs.evolve(done, stdout=b""), command[1])
    try:
        answer = orjson.loads(done.stdout)
    except orjson.JSONDecodeError:
        raise EngineError(f"The engine's `{command[1]}` printed no JSON: {done.text[:200]!r}.") from None
    return answer if isinstance(answer, dict) else {}
