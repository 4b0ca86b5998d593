"""What a run will do, before it does it."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import attrs

from container_runner.box import argv, guest
from container_runner.box.argv import Dialect
from container_runner.box.carried import Ways, in_kernel
from container_runner.box.elsewhere import fetch_argv, send_argv
from container_runner.box.mounts import (
    ContainerMounts,
    mount_table,
    prepare_copies,
    prepare_sessions,
    recheck,
    sessions_folder,
)
from container_runner.box.passwd import Passwd
from container_runner.box.user import User
from container_runner.config import paths
from container_runner.config.values import Mount
from container_runner.errors import ConfigError
from container_runner.gateway.forwarder import forwarder
from container_runner.gateway.plan import GatewayPlan
from container_runner.gateway.scrubber import Scrubber
from container_runner.workspace.carry import Carry
from container_runner.workspace.shadow import Start

LONGEST_VARIABLE = 128 * 1024
"""The longest variable in bytes, its name included, that Linux gives to a program (MAX_ARG_STRLEN)."""

PROOF = ".container-runner-"
"""How the name of a file begins that shows a box that its folders are this machine's."""


def _shown(command: tuple[str, ...]) -> str:
    """A command on one line, without the scripts in it."""
    return repr(" ".join("…" if "\n" in word else shlex.quote(word) for word in command))


def _told(command: Sequence[str], hidden: Mapping[str, str]) -> str:
    """A command on one line, whatever is in it, with names in the place of what is hidden."""
    words = map(Scrubber(hidden, plain=hidden).text, command)  # a short value is in many a text of ours by chance
    return " ".join(shlex.quote(it) if it.isprintable() else json.dumps(it, ensure_ascii=False) for it in words)


def _within(container: str, command: tuple[str, ...]) -> tuple[str, ...]:
    """An `exec`, in the container with this name."""
    separator = command.index("--")
    return (*command[: separator + 1], container, *command[separator + 2 :])


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

    feed: tuple[str, ...] = attrs.field(default=(), repr=_shown)
    """`docker exec` beside it, which carries what a live agent is told; empty for one that gets its prompt and no
    more."""

    disk_limit: int | None = None
    """The bytes that the agent may add to `writable`; None for any."""

    is_exact: bool = False
    """See `Command.is_exact`."""

    command: tuple[str, ...]
    """The agent's program and its arguments."""

    place: str = paths.WORKSPACE
    """Where the workspace is in the container, and where the agent starts."""

    gateway: GatewayPlan | None = None
    """What the gateway lets through; None for a run without one."""

    carry: Carry | None = None
    """How the workspace is carried; None for one that is mounted."""

    mounted: ContainerMounts = attrs.field(repr=False)
    """What is mounted in the container."""

    passwd: Passwd | None = attrs.field(default=None, repr=False)
    """What is known of the names in the image; None where the user needs none of ours."""

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

    settings: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Small files that its runtime has for it, see `Command.files`."""

    session_id: str = ""
    """See `Command.session_id`."""

    hidden: Mapping[str, str] = attrs.field(repr=False)
    """What stands in no record and no error, by the names that stand there instead: `values`, and the secrets in
    mounted files."""

    prompt: bytes = attrs.field(repr=False)

    setup: str = ""
    """A command for the shell in the box that comes before the agent; "" for none."""

    check: str = ""
    """Likewise one that comes after it."""

    token: str = attrs.field(repr=False)
    """What only we and our script in the container know."""

    grace: int
    """Seconds between TERM and KILL when the agent is stopped."""

    endpoint: str = ""
    """The address of the engine, for people; "" for this machine's own."""

    resumes: bool = False
    """Whether the agent goes on with a session, whose files are sent where they can not be mounted."""

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
    def writable(self) -> tuple[str, ...]:
        """The folders and files of this machine that the agent can write, or what it writes goes to."""
        layers = self.carry.layers if self.carry is not None else ()
        return (*(it.source for it in self.mounts if not it.read_only), *(it.upper for it in layers))

    @property
    def workspace(self) -> str | None:
        """The folder on this machine that the agent writes to, or whose copy it writes to."""
        if self.carry is not None:
            return self.carry.workspace
        mounted = (mount.source for mount in self.mounts if mount.target == self.place and not mount.read_only)
        return next(mounted, None)

    def beginning_with(self, start: Start | None) -> Plan:
        """The same, with a carried workspace that begins with this."""
        return self if self.carry is None else attrs.evolve(self, carry=attrs.evolve(self.carry, start=start))

    @property
    def program(self) -> str:
        """The agent's program."""
        return self.command[0]

    @property
    def sessions(self) -> Path:
        """The agent's sessions folder on this machine."""
        return sessions_folder(self.state_dir, self.agent)

    @property
    def waits(self) -> bool:
        """Whether the container waits for its command, because something is done in it before."""
        is_named = self.passwd is not None and self.passwd.is_given
        return self.ephemeral and bool(self.carry or self.gateway or self.mounted.sent or is_named)

    @property
    def gate(self) -> bytes:
        """How the line begins with which such a container has come far enough for what is done in it first.

        A forwarder may start before it is ready, for it has another uid than the agent; the sessions are sent as the
        agent's user.
        """
        is_soon = self.gateway is not None and not self.mounted.sent
        return guest.up_line(self.run_id) if is_soon else guest.ready_line(self.run_id)

    def is_made_of(self, image: str) -> bool:
        """Whether the names that are mounted, if any are, are those of the image with this id."""
        return self.passwd is None or not self.passwd.is_given or self.passwd.image == image

    @property
    def ways(self) -> Ways | None:
        """The commands that carry the workspace in and out, beside `waiting`; None for one that is mounted."""
        return None if self.carry is None else Ways.of(self.carry, self.run[0], self.dialect)

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """All commands, in their order: the one run; of a kept container look for it, run, exec. Beside them what
        carries connections out of it, and at last what carries words into a live agent."""
        forward = (self.forward_in(self.container),) if self.gateway is not None else ()
        feed = (self.feed,) if self.feed else ()
        send = (self.send_in(self.container),) if self.mounted.sent and self.resumes else ()
        fetch = (self.fetch_in(self.container),) if self.mounted.sent else ()
        if self.ways is not None:
            return (*self.ways.around(self.waiting), *send, *fetch, *forward, *feed)
        if self.ephemeral:
            return (self.waiting if self.waits else self.run, *send, *fetch, *forward, *feed)
        return (tuple(argv.list_argv(self.run[0], self.reuse_labels)), self.run, *forward, self.exec, *feed)

    def stdin(self, *, with_command: bool = False, proven: bool = False) -> bytes:
        """What the agent's container or exec gets on stdin in front of its lease: header and prompt.

        With a gateway, `guest.GO` and the prompt come behind it when that is there.

        Args:
            with_command: whether the command is among it, for a container that waited for it.
            proven: whether it looks for the file of `proving`, which must be there then.

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
            uid=str(self.user.uid) if self.passwd is not None and not self.passwd.image else "",
            proof=f"{self.proof.target}/{self.proof_name}" if proven and self.proof else "",
            values=self.values,
            files=self.files,
            settings=self.settings,
            setup=self.setup,
            check=self.check,
            live=bool(self.feed),
            gated=self.gateway is not None,
            exact=self.is_exact,
            command=self.command if with_command else (),
            place=self.place,
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

    @property
    def proof(self) -> Mount | None:
        """The mount, a folder of ours, in which something new shows that the engine sees this machine's files."""
        inside = (it for it in self.mounts if f"{it.target}/".startswith(f"{paths.SESSIONS}/") and not it.read_only)
        return next(inside, None)

    @property
    def proof_name(self) -> str:
        """The name of that."""
        return f"{PROOF}{self.run_id}"

    def send_in(self, container: str) -> tuple[str, ...]:
        """`docker exec` that unpacks the sessions, in the container with this name."""
        return send_argv(self.run[0], name=container, user=str(self.user))

    def fetch_in(self, container: str) -> tuple[str, ...]:
        """`docker exec` that tells what they have become."""
        return fetch_argv(self.run[0], name=container, user=str(self.user), kept=self.mounted.sent.values())

    def forward_in(self, container: str) -> tuple[str, ...]:
        """`docker exec` of the gateway's forwarder, in the container with this name; empty without a gateway."""
        if self.gateway is None:
            return ()
        command = forwarder(self.gateway.run, self.gateway.port)
        return tuple(argv.gateway_argv(self.run[0], name=container, user=self.user, command=command))

    def exec_in(self, container: str) -> tuple[str, ...]:
        """`exec`, in the container with this name."""
        return _within(container, self.exec)

    def taken_by(self, waiting: Self) -> Self:
        """This plan, in the container that *waiting* has started for one of its kind."""
        # The script in there has the run's id that it was started with.
        feed = (*self.feed[:-1], waiting.run_id) if self.feed else ()
        return attrs.evolve(self, container=waiting.container, ends_at=waiting.ends_at, feed=feed)

    def feed_in(self, container: str) -> tuple[str, ...]:
        """`feed`, in the container with this name."""
        return _within(container, self.feed)

    @property
    def told_on_stdin(self) -> str:
        """A comment for a shell that tells what the last command gets on stdin."""
        named = f" with {', '.join(self.variables)}" if self.variables else ""
        size = len(self.prompt)
        steps = (("before", self.setup), ("after", self.check))
        told = [f"# engine: at {self.endpoint}; what it mounts must be this machine's, or the files are sent"]
        told = told if self.endpoint else []
        told += [f"# gateway: {line}" for line in (self.gateway.told if self.gateway else ())]
        told += [f"# {when} the agent: sh -c {json.dumps(step, ensure_ascii=False)}" for when, step in steps if step]
        told += [f"# the agent, in the header: {_told(self.command, self.hidden)}"] if self.waits else []
        told += [f"# on stdin: a header{named}; {size} bytes of prompt; the lease, which is open until the end"]
        return "\n".join(told)

    def to_shell(self) -> str:
        """The commands as lines for a POSIX shell, with a comment that tells what the last one gets on stdin.

        That is `stdin()`, with a gateway also an empty line and the prompt, and then nothing, for as long as the agent
        is to live. Secrets are in none of the lines.
        """
        *first, last = map(shlex.join, self.commands)
        if not self.feed:
            return "\n".join([*first, self.told_on_stdin, last])
        *first, agent = first
        return "\n".join([*first, self.told_on_stdin, agent, "# on stdin: what the agent is told", last])
