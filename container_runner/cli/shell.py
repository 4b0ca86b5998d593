"""`container-runner shell`: a look around in an agent's kept container."""

from __future__ import annotations

import difflib
import os
import sys
from typing import Annotated

import anyio
import attrs
from cyclopts import Parameter

from container_runner.cli.containers import ContainerFlags, JsonFlag, configured, open_manager, print_json

SHELL = ("sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash; exec sh")
"""bash where the image has it, else sh."""


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class ShellFlags:
    """Who a person is in the container, and with which variables.

    Attributes:
        user: Somebody else than the agent's user, as UID or UID:GID.
        env: Another variable, as NAME=VALUE. Can be given again.
        secrets: Pass on the agent's credentials and the configured secrets from your environment, as a run does.
        secret: The name of another variable of yours to pass on. Can be given again.
    """

    user: str | None = None
    env: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = ()
    secrets: Annotated[bool, Parameter(negative=())] = False
    secret: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = ()


def shell(
    agent: str,
    *command: str,
    json: JsonFlag = False,
    who: ShellFlags | None = None,
    flags: ContainerFlags | None = None,
) -> None:
    """Open a shell in an agent's kept container, as the agent's user and with its environment.

    Args:
        agent: The agent's name, as `container-runner ps` shows it.
        command: A command to run there instead of a shell; after -- if it has flags.
        json: Print the engine's command as a JSON list of its words, and run nothing.
    """
    words, environ = anyio.run(_prepare, agent, command, who or ShellFlags(), flags or ContainerFlags())
    if json:
        print_json(words)
        return
    # From here on this process is the engine's client, with this terminal, its signals and its exit code.
    os.execvpe(words[0], words, environ)  # noqa: S606  a list; there is no shell


async def _prepare(
    agent: str, command: tuple[str, ...], who: ShellFlags, flags: ContainerFlags
) -> tuple[list[str], dict[str, str]]:
    from container_runner.box import argv
    from container_runner.box.environment import build_container_env
    from container_runner.box.mounts import sessions_folder
    from container_runner.box.user import User
    from container_runner.cli.flags import _pair, known_agent
    from container_runner.config import paths
    from container_runner.config.container import ContainerConfig
    from container_runner.engine.locks import LockFile
    from container_runner.engine.manager import AGENT_LABEL, KIND_LABEL, PLACE_LABEL, STATE_LABEL, state_digest
    from container_runner.errors import ContainerGoneError
    from container_runner.options import Agent, ExecuteOptions

    known = configured(flags, agent=agent).settings
    config = ContainerConfig(
        image="unused",
        user=who.user or known["user"].value,
        env={**known["env"].value, **dict(_pair("env", word) for word in who.env)},
        secrets=(*who.secret, *(known["secrets"].value if who.secrets else ())),
        optional_secrets=known["optional_secrets"].value if who.secrets else (),
    )
    options = ExecuteOptions(prompt="", agent=Agent(name=agent, model=known["model"].value))
    agent_kind = known_agent(known["agent_kind"].value)()
    env = build_container_env(
        options.agent, config, command=agent_kind.command(options, contained=True), credentials=who.secrets
    )
    manager = await open_manager(flags)
    labels = {AGENT_LABEL: agent, STATE_LABEL: state_digest(manager.state_dir), KIND_LABEL: "persistent"}
    locks = manager.state_dir / "locks"
    async with LockFile(locks / f"agent.{agent}.lock").held():
        running = [info for info in await manager.containers(labels) if info.is_running]
        if not running:
            message = f"The agent {agent!r} has no kept container that runs."
            step = f"Make one with: container-runner run --no-ephemeral --agent={agent} …"
            del labels[AGENT_LABEL]
            kept = [info for info in await manager.containers(labels) if info.is_running]
            if near := difflib.get_close_matches(agent, {info.labels[AGENT_LABEL] for info in kept}, n=1):
                step = f"Did you mean {near[0]}?"
            raise ContainerGoneError(message, next_step=step)
        name, place = running[-1].name, running[-1].labels.get(PLACE_LABEL, paths.WORKSPACE)
        lock = LockFile(locks / f"container.{name}.lock")
        await lock.acquire(shared=True)
        lock.keep_across_exec()  # the client holds it for as long as it runs
    sessions = sessions_folder(manager.state_dir, agent)
    words = argv.shell_argv(
        manager.engine.binary,
        name=name,
        user=User.of(config, sessions if sessions.is_dir() else None),  # it belongs to the agent's user
        env=env,
        terminal=sys.stdin.isatty() and sys.stdout.isatty(),
        command=command or SHELL,
        place=place,
    )
    return words, {**manager.engine.environ, **env.values}
