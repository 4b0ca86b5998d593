"""What a run will do, before it does it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

import attrs

from container_runner.box import argv, guest
from container_runner.box.argv import Dialect
from container_runner.box.carried import Ways, in_kernel
from container_runner.box.mounts import ContainerMounts, mount_table, prepare_copies, prepare_sessions, recheck
from container_runner.box.user import User
from container_runner.config import paths
from container_runner.config.values import Mount
from container_runner.errors import ConfigError
from container_runner.workspace.carry import Carry

LONGEST_VARIABLE = 128 * 1024
"""The longest variable in bytes, its name included, that Linux gives to a program (MAX_ARG_STRLEN)."""


def _shown(command: tuple[str, ...]) -> str:
    """A command on one line, without the scripts in it."""
    return repr(" ".join("…" if "\n" in word else shlex.quote(word) for word in command))


@attrs.frozen(kw_only=True)
class Plan:
    """The commands of one run, in their order, and what travels with them.

    `ContainerRunner.execute` runs these very lists, `container-runner argv` prints them, and tests compare them.
    """

    run_id: str
    """32 random hexadecimal digits."""

    agent: str
    """The agent's name."""

    container: str
    """The container's name, with a random part."""

    ephemeral: bool

    run: tuple[str, ...] = attrs.field(repr=_shown)
    """`docker run`: an ephemeral run from start to end, or the start of a kept container, which is skipped if the
    agent's own is found."""

    exec: tuple[str, ...] = attrs.field(default=(), repr=_shown)
    """`docker exec`, which runs the agent in a kept container; in one that was found, with that one's name."""

    waiting: tuple[str, ...] = attrs.field(default=(), repr=False)
    """`run` without the agent's command, for a container of a pool."""

    command: tuple[str, ...]
    """The agent's program and its arguments."""

    carry: Carry | None = None
    """How the workspace is carried; None for one that is mounted."""

    mounted: ContainerMounts = attrs.field(repr=False)
    """What is mounted in the container."""

    kept: tuple[str, ...] = ()
    """The folders of the sessions folder that are kept, see `Command.kept`."""

    other_mounts: bool = False
    """Whether `extra_args` mounts something too."""

    variables: tuple[str, ...]
    """The names of the variables that travel on stdin, secrets among them."""

    values: Mapping[str, str] = attrs.field(repr=False)
    """Their values."""

    files: Mapping[str, str] = attrs.field(repr=False)
    """Small files that the agent finds in its HOME, by their names: git's configuration."""

    hidden: Mapping[str, str] = attrs.field(repr=False)
    """What stands in no record and no error, by the names that stand there instead: `values`, and the secrets in
    mounted files."""

    prompt: bytes = attrs.field(repr=False)

    token: str = attrs.field(repr=False)
    """What only we and our script in the container know."""

    grace: int
    """Seconds between TERM and KILL when the agent is stopped."""

    image: str
    state_dir: Path
    """Where the sessions and locks are."""

    user: User
    """Who the agent is in the container."""

    reuse_labels: dict[str, str]
    """The labels by which a persistent container is found again."""

    digest: str
    """What makes the container what it is: the digest of `run` without what differs from run to run."""

    time_limit: int
    """How long the container lives at most, in seconds."""

    ends_at: float = attrs.field(repr=False)
    """When that time is over for the container that `run` makes, in seconds since the epoch."""

    may_pull: bool
    """Whether `run` may have to fetch the image first."""

    dialect: Dialect = attrs.field(repr=False)

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """What of the host is in the container."""
        return self.mounted.mounts

    @property
    def workspace(self) -> str | None:
        """The folder on this machine that the agent writes to, or whose copy it writes to."""
        if self.carry is not None:
            return self.carry.workspace
        mounted = (mount.source for mount in self.mounts if mount.target == paths.WORKSPACE and not mount.read_only)
        return next(mounted, None)

    @property
    def program(self) -> str:
        """The agent's program."""
        return self.command[0]

    @property
    def ways(self) -> Ways | None:
        """The commands that carry the workspace in and out, beside `waiting`; None for one that is mounted."""
        return None if self.carry is None else Ways.of(self.carry, self.run[0], self.dialect)

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """All commands, in their order: the one run; of a kept container look for it, run, exec."""
        if self.ways is not None:
            return self.ways.around(self.waiting)
        if self.ephemeral:
            return (self.run,)
        return tuple(argv.list_argv(self.run[0], self.reuse_labels)), self.run, self.exec

    def stdin(self, *, with_command: bool = False) -> bytes:
        """What the agent's container or exec gets on stdin in front of its lease: header and prompt.

        Args:
            with_command: whether the command is among it, for a container that waited for it.

        Raises:
            ConfigError: a variable is longer than the kernel takes.
        """
        for name, value in self.values.items():
            if (size := len(name) + len(os.fsencode(value)) + 2) > LONGEST_VARIABLE:
                raise ConfigError(
                    f"env.{name}", f"{size} bytes", f"at most {LONGEST_VARIABLE} bytes, as the kernel takes"
                )
        table, kernel = mount_table()
        return guest.header(
            self.prompt,
            token=self.token,
            grace=self.grace,
            mounts=[*self.mounted.in_kernel(table), *(in_kernel(self.carry, self.dialect) if self.carry else [])],
            kernel=kernel,
            other_mounts=self.other_mounts,
            values=self.values,
            files=self.files,
            command=self.command if with_command else (),
        )

    def prepare(self) -> bool:
        """Make the folders that the run needs, and see that its mounts are still what they were.

        Returns:
            Whether something was made that was not there. Then a new plan tells better what the mounts are.

        Raises:
            ConfigError: a mount's source, or the sessions folder, has become something else.
            StateError: a folder can not be made.
        """
        is_new = prepare_sessions(self.state_dir, self.agent, self.user, self.kept)
        is_new |= prepare_copies(self.mounted.copies)
        return recheck(self.mounts) or is_new

    def exec_in(self, container: str) -> tuple[str, ...]:
        """`exec`, in the container with this name."""
        separator = self.exec.index("--")
        return (*self.exec[: separator + 1], container, *self.exec[separator + 2 :])

    @property
    def told_on_stdin(self) -> str:
        """A comment for a shell that tells what the last command gets on stdin."""
        named = f" with {', '.join(self.variables)}" if self.variables else ""
        size = len(self.prompt)
        return f"# on stdin: a header{named}; {size} bytes of prompt; the lease, which is open until the end"

    def to_shell(self) -> str:
        """The commands as lines for a POSIX shell, with a comment that tells what the last one gets on stdin.

        That is `stdin()`, and then nothing, for as long as the agent is to live. Secrets are in none of the lines.
        """
        *first, last = map(shlex.join, self.commands)
        return "\n".join([*first, self.told_on_stdin, last])
