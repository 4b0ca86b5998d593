"""How a run is planned: from what is asked for to the commands. Nothing is started, and nothing is changed."""

from __future__ import annotations

import hashlib
import secrets
import time
from functools import partial
from pathlib import Path

import attrs

from container_runner.agents import CommandLineRuntime
from container_runner.box import argv, gitconfig, script
from container_runner.box.carried import carried_flags, plan_carry
from container_runner.box.elsewhere import config_there
from container_runner.box.environment import build_container_env, host_environment
from container_runner.box.mounts import MOUNTING, build_container_mounts
from container_runner.box.passwd import TARGET, Passwd
from container_runner.box.plan import Plan
from container_runner.box.sources import resolve_workspace
from container_runner.box.translator import in_container
from container_runner.box.user import User
from container_runner.config.container import ContainerConfig
from container_runner.engine.engine import Engine
from container_runner.engine.manager import (
    CONFIG_LABEL,
    DEADLINE_LABEL,
    DEADLINE_SLACK,
    NAME_LABEL,
    RUN_LABEL,
    agent_labels,
    place_labels,
)
from container_runner.engine.owner import Owner
from container_runner.errors import ConfigError
from container_runner.gateway.plan import plan_gateway
from container_runner.options import FOLDER, ExecuteOptions
from container_runner.session.tools import Toolbox
from container_runner.stream.beat import PATIENCE
from container_runner.workspace import repositories
from container_runner.workspace.carry import Carry


def make_plan(
    runtime: CommandLineRuntime,
    config: ContainerConfig,
    state_dir: Path,
    options: ExecuteOptions,
    engine: Engine,
    *,
    run_id: str,
    work_id: str,
    may_overlay: bool,
    toolbox: Toolbox | None = None,
) -> Plan:
    """What a run will do.

    Args:
        run_id: 32 hexadecimal digits that nothing else has.
        work_id: by what the work of a carried workspace is known: that of the first attempt to start.
        may_overlay: whether the engine has not yet refused an overlay.
        toolbox: functions that the agent may call.

    Raises:
        ConfigError: the options or the configuration can not be carried out.
    """
    agent, environ = options.agent, host_environment()
    elsewhere = not engine.sees_files
    if elsewhere:
        config = config_there(config, agent)
    workspace = None if agent.workspace is None else resolve_workspace(agent)
    user, (translated, place) = User.of(config, workspace), in_container(options, config, runtime)
    describe = partial(runtime.command, contained=True)
    command, gateway = plan_gateway(
        config,
        describe,
        translated,
        environ,
        run_id,
        toolbox=toolbox,
        offer=runtime.with_server,
        tell=runtime.with_words,
    )
    if len(command.stdin) > script.PROMPT_LIMIT:
        allowed = f"at most {script.PROMPT_LIMIT} bytes; put the long part into a file in the workspace"
        raise ConfigError("prompt", f"{len(command.stdin)} bytes", allowed)
    mounts = build_container_mounts(
        agent,
        config,
        state_dir,
        user=user,
        credentials=command.credentials,
        kept=command.kept,
        more=command.mounts,
        environ=[name for name in environ if environ[name]],
        elsewhere=elsewhere,
    )
    env = build_container_env(
        agent,
        config,
        command=command,
        environ=environ,
        credentials=mounts.credentials_by_name,
        gateway=gateway,
    )
    passwd = None
    # In a kept container PID 1 is somebody else than the agent.
    if not (elsewhere or (engine.dialect.names_user and config.ephemeral) or _has_own_names(config)):
        home = next(word.partition("=")[2] for word in (*env.spelled, "HOME=") if word.startswith("HOME="))
        passwd = Passwd.known(state_dir.resolve(), engine=engine.endpoint, image=config.image, user=user, home=home)
        mounts = attrs.evolve(mounts, mounts=(*mounts.mounts, *filter(None, (passwd.mount,))))
    name = f"container-runner-{agent.name}-{run_id[:12]}"
    carry = None
    if workspace is not None and config.workspace_mode == "carried":
        carry = plan_carry(
            config,
            engine.dialect,
            run=work_id,
            agent=agent.name,
            workspace=workspace,
            state_dir=state_dir,
            user=user,
            engine=engine.binary,
            container=name,
            overlay=may_overlay,
        )
        carry = attrs.evolve(carry, endpoint=engine.endpoint)
    elif options.from_run not in (None, FOLDER):
        raise ConfigError("from_run", options.from_run, 'None, or workspace_mode="carried" beside it')
    if config.disk_limit is not None:
        _check_watched(config, carry)
    found_by = agent_labels(agent.name, state_dir, ephemeral=config.ephemeral)
    run = partial(
        argv.run_argv,
        engine.binary,
        engine.dialect,
        config,
        user=user,
        mounts=mounts,
        env=env,
        carried=carried_flags(carry, engine.dialect, makes=True) if carry else (),
        patience=PATIENCE if elsewhere else None,
    )
    # All that makes the container what it is: the command without what differs from run to run, and which files
    # its mounts really are. The engine's mount of a file ends when the host renames another one over it.
    # Whoever is in it can use the gateway of whoever else is.
    shared = [mounts.identity] if gateway is None else [mounts.identity, gateway.identity]
    made_of = "\0".join([*run(name="", labels=found_by, run_id=""), *shared])
    found_by[CONFIG_LABEL] = hashlib.sha256(made_of.encode()).hexdigest()[:32]
    ends_at = int(time.time()) + config.time_limit
    own = {RUN_LABEL: run_id, NAME_LABEL: name, DEADLINE_LABEL: str(ends_at + DEADLINE_SLACK)}
    labels = {**own, **place_labels(place), **found_by, **Owner.current().to_labels()}
    waiting = tuple(run(name=name, labels=labels, run_id=run_id))
    in_kept = argv.exec_argv(
        engine.binary,
        name=name,
        user=user,
        env=env,
        run_id=run_id,
        time_limit=config.time_limit,
        command=command.argv,
        place=place,
    )
    return Plan(
        run_id=run_id,
        agent=agent.name,
        container=name,
        ephemeral=config.ephemeral,
        run=(*waiting, *command.argv) if config.ephemeral else waiting,
        exec=() if config.ephemeral else tuple(in_kept),
        feed=tuple(argv.feed_argv(engine.binary, name=name, user=user, run_id=run_id)) if command.is_live else (),
        waiting=waiting if config.ephemeral else (),
        disk_limit=config.disk_limit,
        is_exact=command.is_exact,
        command=command.argv,
        place=place,
        carry=carry,
        gateway=gateway,
        mounted=mounts,
        passwd=passwd,
        kept=command.kept or (),
        other_mounts=any(word.startswith(MOUNTING) for word in config.extra_args),
        variables=env.named,
        values=env.values,
        hidden={**env.values, **mounts.hidden, **(gateway.secrets if gateway else {})},
        files=gitconfig.box_files(environ, None if workspace is None else repositories.git_folder(workspace)),
        settings=command.files,
        session_id=command.session_id,
        prompt=command.stdin,
        setup=options.setup or "",
        check=options.check or "",
        token=secrets.token_hex(16),
        grace=options.grace,
        user=user,
        reuse_labels=found_by,
        digest=found_by[CONFIG_LABEL],
        time_limit=config.time_limit,
        ends_at=ends_at,
        may_pull=config.pull != "never",
        endpoint=engine.endpoint,
        resumes=options.resume is not None,
        image=config.image,
        state_dir=state_dir,
        dialect=engine.dialect,
    )


def _has_own_names(config: ContainerConfig) -> bool:
    """Whether the operator has something mounted where an image's names are, or around it."""
    targets = {*(it.target for it in config.volumes), *(it.target for it in config.tmpfs)}
    others = (word for word in config.extra_args if word.startswith(MOUNTING))
    return bool(targets & {TARGET, "/etc"}) or any("/etc" in word for word in others)


def _check_watched(config: ContainerConfig, carry: Carry | None) -> None:
    """Refuse a limit on what is written where that can not be seen.

    Raises:
        ConfigError: the workspace's copy is in a volume, or something is mounted that we do not know.
    """
    if carry is not None and carry.volume:
        allowed = (
            'None where the workspace is carried by a stream: mount it with workspace_mode = "rw", or see with '
            'carry = "overlay" why it can not be carried otherwise'
        )
        raise ConfigError("disk_limit", config.disk_limit, allowed)
    if any(word.startswith(MOUNTING) and not word.startswith("--tmpfs") for word in config.extra_args):
        allowed = "None with a mount in extra_args, which is not watched; volumes are"
        raise ConfigError("disk_limit", config.disk_limit, allowed)
