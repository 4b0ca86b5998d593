"""What a run will do, before it does it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import attrs

from container_runner.box import argv
from container_runner.box.argv import Dialect
from container_runner.box.mounts import prepare_sessions, recheck
from container_runner.box.user import User
from container_runner.config.values import Mount


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

    run: tuple[str, ...]
    """`docker run`, which starts the container. A persistent agent skips it when its container is found."""

    exec: tuple[str, ...]
    """`docker exec`, which runs the agent. In a container that was found, with that one's name."""

    mounts: tuple[Mount, ...]
    """What of the host is in the container."""

    variables: tuple[str, ...]
    """The names of the variables whose values travel in the client's environment, secrets among them."""

    values: Mapping[str, str] = attrs.field(repr=False)
    """Their values."""

    stdin: bytes = attrs.field(repr=False)
    """The agent's prompt."""

    program: str
    """The agent's program."""

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
    def stdin_size(self) -> int:
        """The length of the prompt in bytes."""
        return len(self.stdin)

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """All commands, in their order: run, exec, remove; of a persistent container look for it, run, exec, sweep."""
        binary = self.run[0]
        if self.ephemeral:
            return self.run, self.exec, tuple(argv.remove_argv(binary, self.dialect, name=self.container))
        sweep = argv.sweep_argv(binary, name=self.container, user=self.user)
        return tuple(argv.list_argv(binary, self.reuse_labels)), self.run, self.exec, tuple(sweep)

    def prepare(self) -> bool:
        """Make the folders that the run needs, and see that its mounts are still what they were.

        Returns:
            Whether something was made that was not there. Then a new plan tells better what the mounts are.

        Raises:
            ConfigError: a mount's source, or the sessions folder, has become something else.
            StateError: a folder can not be made.
        """
        is_new = prepare_sessions(self.state_dir, self.agent, self.user)
        return recheck(self.mounts) or is_new

    def exec_in(self, container: str) -> tuple[str, ...]:
        """`exec`, in the container with this name."""
        separator = self.exec.index("--")
        return (*self.exec[: separator + 1], container, *self.exec[separator + 2 :])

    def to_shell(self) -> str:
        """The commands as lines for a POSIX shell. Secrets are in none of them.

        To run them by hand, make the folders of `mounts` first, and give the second one `stdin_size` bytes on stdin. It
        waits for the end of its stdin when it has said "container-runner: ended" on stdout.
        """
        return "\n".join(shlex.join(command) for command in self.commands)
