"""A `docker` for tests of the commands that look after containers: a script that answers from files.

It knows `--version`, `info`, `version`, `image inspect`, `ps`, `inspect`, `rm` and `exec`, and writes down what it was
asked.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import pytest

from container_runner.cli import main
from container_runner.engine.manager import AGENT_LABEL, KIND_LABEL, NAME_LABEL, RUN_LABEL, STATE_LABEL, state_digest
from container_runner.engine.owner import Owner

SCRIPT = """\
#!/bin/sh
cd "$(dirname "$0")"
for word; do printf '%s\\037' "$word"; done >>calls
echo >>calls
case $1 in
  --version) cat version ;;
  ps) cat ids ;;
  inspect) cat containers ;;
  rm) for name; do :; done; [ ! -e "stuck-$name" ] || { echo "Error response from daemon: it is stuck" >&2; exit 1; } ;;
  exec) printf '%s\\n' "$@"; exit 7 ;;
esac
"""


@attrs.frozen
class SmallEngine:
    """The script in a folder of its own."""

    folder: Path
    state: Path
    """The state folder that its containers belong to, unless they are made for another one."""

    _containers: list[dict[str, Any]] = attrs.field(factory=list)

    @classmethod
    def make(cls, folder: Path) -> SmallEngine:
        engine = cls(folder / "engine", folder / "state")
        engine.folder.mkdir()
        (engine.folder / "docker").write_text(SCRIPT)
        (engine.folder / "docker").chmod(0o755)
        (engine.folder / "version").write_text("Docker version 28.2.2, build e6534b4\n")
        engine._write()
        return engine

    @property
    def binary(self) -> str:
        return str(self.folder / "docker")

    @property
    def flags(self) -> tuple[str, str]:
        """What a command line needs to use it."""
        return f"--engine={self.binary}", f"--state-dir={self.state}"

    def add(
        self,
        name: str,
        *,
        agent: str = "bot",
        kind: str = "persistent",
        status: str = "running",
        created: str = "2026-01-02T03:04:05.678901234Z",
        owner: Owner | None = None,
        state: Path | None = None,
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Add a container of ours."""
        owner = owner or attrs.evolve(Owner.current(), pid=os.getpid())
        ours = {
            RUN_LABEL: "0" * 32,
            NAME_LABEL: name,
            AGENT_LABEL: agent,
            KIND_LABEL: kind,
            STATE_LABEL: state_digest(state or self.state),
            **owner.to_labels(),
            **labels,
        }
        self._containers.append(
            {
                "Id": f"{len(self._containers):064x}",
                "Name": f"/{name}",
                "Created": created,
                "Config": {"Labels": ours},
                "State": {"Status": status, "OOMKilled": False, "ExitCode": 0},
            }
        )
        self._write()

    def stick(self, name: str) -> None:
        """Make a container impossible to remove."""
        (self.folder / f"stuck-{name}").touch()

    @property
    def calls(self) -> list[list[str]]:
        """What it was asked, oldest first."""
        text = (self.folder / "calls").read_text() if (self.folder / "calls").exists() else ""
        return [call.split("\037")[:-1] for call in text.splitlines()]

    @property
    def removed(self) -> list[str]:
        """The names that `rm` was asked for."""
        return [call[-1] for call in self.calls if call[0] == "rm"]

    def _write(self) -> None:
        (self.folder / "ids").write_text("".join(f"{container['Id']}\n" for container in self._containers))
        (self.folder / "containers").write_text(json.dumps(self._containers))


@attrs.frozen
class Done:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def call(capture: pytest.CaptureFixture[str] | pytest.CaptureFixture[bytes], *words: str) -> Done:
    """Run a command line in this process."""
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    sys.stdout.flush()
    out, err = (said.decode() if isinstance(said, bytes) else said for said in capture.readouterr())
    return Done(int(caught.value.code or 0), out, err)


def dead_owner() -> Owner:
    """A process of this machine that has ended."""
    return attrs.evolve(Owner.current(), pid=2**22 - 1, started=1)
