"""The sessions of agents: what claude keeps of them in the sessions folder, and our own transcripts of their runs.

claude's files are written in the container, by whoever the agent obeyed last. So they are opened on a way without
symlinks, only if they are regular files, and their names are checked before they become paths.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Final

import attrs

from container_runner.errors import ConfigError, StateError
from container_runner.folders import open_folder, open_to_read
from container_runner.records.records import Records, RunRecord, subfolders
from container_runner.records.transcript import (
    CHUNK,
    Part,
    Prompt,
    converse,
    parse_record,
    parse_session_line,
    read_lines,
)

AGENT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
SESSION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")

_PLACE: Final = ("projects", "-workspace")
"""Where claude keeps the sessions of /workspace in its folder."""

_FILE_LIMIT: Final = 64 * 1024**2
"""Bytes of one of claude's files that are read. An agent can make files of any length, and any number of them."""

_MOST_FILES: Final = 1000
"""Files of claude's that are looked at, for each agent."""


@attrs.frozen(kw_only=True)
class Session:
    """A session of an agent."""

    id: str
    agent: str
    used: dt.datetime
    """When it was last used."""

    title: str
    """The beginning of its first prompt, or ""."""

    runs: tuple[RunRecord, ...] = ()
    """Its runs of which there is a record, oldest first."""

    has_file: bool = False
    """Whether claude's own file is there, so that it can be resumed."""

    @property
    def cost_usd(self) -> float | None:
        """What its recorded runs cost together; None if none says."""
        costs = [run.summary.cost_usd for run in self.runs if run.summary.cost_usd is not None]
        return sum(costs) if costs else None

    @property
    def places(self) -> tuple[str, ...]:
        """The workspaces of its recorded runs."""
        return tuple(dict.fromkeys(run.summary.workspace for run in self.runs if run.summary.workspace is not None))

    @property
    def turns(self) -> int | None:
        """The turns of its recorded runs together; None if none says."""
        turns = [run.summary.turns for run in self.runs if run.summary.turns is not None]
        return sum(turns) if turns else None


class Sessions:
    """The sessions of a state folder, which need not exist."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self.records = Records(state_dir)

    def agents(self) -> list[str]:
        """The names of the agents that have sessions or records."""
        with_sessions = filter(AGENT_NAME.fullmatch, subfolders(self._state_dir, "sessions"))
        return sorted({*with_sessions, *self.records.agents()})

    def of(self, agent: str) -> list[Session]:
        """The sessions of an agent, oldest first.

        Raises:
            ConfigError: no agent can have this name.
        """
        if not AGENT_NAME.fullmatch(agent):
            raise ConfigError("agent", agent, "the name of an agent; `container-runner sessions list --all` has them")
        runs: dict[str, list[RunRecord]] = {}
        for run in self.records.runs(agent):
            if SESSION_ID.fullmatch(run.summary.session_id or ""):
                runs.setdefault(run.summary.session_id or "", []).append(run)
        files = dict(self._files(agent))
        found = []
        for id_ in {*runs, *files}:
            of_it = tuple(runs.get(id_, ()))
            ends = [run.summary.ended or run.summary.started for run in of_it]
            title = of_it[0].summary.prompt if of_it else self._first_prompt(agent, id_)
            used = max([*ends, *([files[id_]] if id_ in files else [])])
            found.append(Session(id=id_, agent=agent, used=used, title=title or "", runs=of_it, has_file=id_ in files))
        return sorted(found, key=lambda session: (session.used, session.id))

    def find(self, session_id: str, agent: str | None = None) -> Session:
        """The session whose id begins with *session_id*, of *agent* or of any.

        Raises:
            ConfigError: there is none, or more than one.
        """
        agents = self.agents() if agent is None else [agent]
        found = [s for name in agents for s in self.of(name) if session_id and s.id.startswith(session_id)]
        found = [session for session in found if session.id == session_id] or found
        if len(found) != 1:
            allowed = "the id of a session, or its beginning; `container-runner sessions list --all` has them"
            raise ConfigError("session", session_id, f"{allowed} ({len(found)} begin with this)" if found else allowed)
        return found[0]

    def lines(self, session: Session) -> Iterator[bytes]:
        """The lines of the session's transcripts, or of claude's own file if there is no transcript.

        Raises:
            StateError: a file is not there any more, or can not be read.
        """
        for run in session.runs:
            with self.records.open(run) as fd:
                yield from read_lines(fd)
        if not session.runs:
            with self._open(session.agent, session.id) as fd:
                yield from read_lines(fd, _FILE_LIMIT)

    def parts(self, session: Session) -> list[Part]:
        """The session's runs as conversations, or claude's own file as one.

        Raises:
            StateError: a file is not there any more, or can not be read.
        """
        parts = []
        for run in session.runs:
            with self.records.open(run) as fd:
                parts.append(Part(conversation=converse(map(parse_record, read_lines(fd))), summary=run.summary))
        return parts or [Part(conversation=converse(map(parse_session_line, self.lines(session))))]

    def _files(self, agent: str) -> list[tuple[str, dt.datetime]]:
        """The ids of the agent's own session files, and when each was last written."""
        found = []
        try:
            with open_folder(self._state_dir, "sessions", agent, *_PLACE) as folder, os.scandir(folder) as entries:
                for entry in islice(entries, _MOST_FILES):
                    id_, _, suffix = entry.name.rpartition(".")
                    if suffix == "jsonl" and SESSION_ID.fullmatch(id_) and entry.is_file(follow_symlinks=False):
                        changed = entry.stat(follow_symlinks=False).st_mtime
                        found.append((id_, dt.datetime.fromtimestamp(changed, dt.UTC)))
        except (OSError, ValueError, OverflowError):  # a time that no calendar has
            pass
        return found

    def _first_prompt(self, agent: str, session_id: str) -> str:
        try:
            with self._open(agent, session_id) as fd:
                entries = (parse_session_line(line) for line in read_lines(fd, CHUNK))
                prompts = (item.text for item in converse(entries).items if isinstance(item, Prompt))
                return next(prompts, "")[:200]
        except StateError:
            return ""

    def _open(self, agent: str, session_id: str) -> AbstractContextManager[int]:
        place = ("sessions", agent, *_PLACE, f"{session_id}.jsonl")
        return open_to_read(self._state_dir, *place, what=f"The session {session_id} of {agent}")
