"""The tutorial, typed as it stands: each command is run, and prints what the page says."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import attrs
import pytest

from tests.integration.engines import RealEngine
from tests.integration.runs import COMMAND
from tests.test_docs import ROOT, blocks_of, typed

PAGE = ROOT / "docs/tutorial.md"
IMAGE = "container-runner/demo"
HOME = "/home/you"
SESSION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

VARYING = (
    (SESSION.pattern, "SESSION"),
    (r"(container-runner\.(?:run|state|config|host|boot|pid|started|deadline))=[0-9a-f]+", r"\1=N"),
    (r"(container-runner-(?:keeper|project-[0-9a-f]{8}))-[0-9a-f]{12}", r"\1-RUN"),
    (r"project-[0-9a-f]{8}", "project-PATH"),
    (r"\b(run|changes|apply|branch|discard) [0-9a-f]{12}\b", r"\1 RUN"),
    (r"layers/[0-9a-f]{32}/", "layers/RUN/"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
    (r"\b\d+\.\d s\b", "SECONDS"),
    (r"\b\d+s\b", "AGE"),
    (r" +", " "),  # columns are as wide as what is in them
)
"""What differs from run to run, and what stands for it when two outputs are compared."""


@attrs.define
class Typist:
    """Somebody who types the page's commands in one folder."""

    home: Path
    engine: RealEngine
    folder: Path
    sessions: dict[str, str] = attrs.field(factory=dict)
    """The page's session ids, and what they were this time."""

    def types(self, line: str) -> str:
        """What a command prints, stdout and stderr together as at a terminal."""
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CONTAINER_RUNNER_")},
            "PATH": f"{Path(COMMAND).parent}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "XDG_STATE_HOME": str(self.home / ".local/state"),
            "CONTAINER_RUNNER_ENGINE": self.engine.binary,
            "CONTAINER_RUNNER_IMAGE": self.engine.images.tiny,
            "CONTAINER_RUNNER_CREDENTIALS": "none",
        }
        line = SESSION.sub(lambda match: self.sessions[match[0]], line)
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=environ,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.stdout

    def as_on_the_page(self, output: str) -> str:
        """An output with this machine's names replaced by those of the page."""
        for ours, theirs in (
            (self.engine.images.tiny, IMAGE),
            (self.engine.binary, "docker"),
            (str(self.home), HOME),
        ):
            output = output.replace(ours, theirs)
        return output


def steps(code: str) -> list[tuple[str, str]]:
    """A block's commands, each with what it prints."""
    parts = re.split(r"^\$ (.*)\n", code, flags=re.MULTILINE)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2], strict=True))


def comparable(output: str) -> str:
    for pattern, word in VARYING:
        output = re.sub(pattern, word, output)
    return output.strip()


@pytest.mark.timeout(300)
def test_the_tutorial_does_what_it_says(docker: RealEngine, workspace: Path) -> None:
    folder = workspace / "project"
    folder.mkdir()
    os.chown(folder, *docker.owner)
    typist = Typist(workspace, docker, folder)
    blocks = list(blocks_of(PAGE))
    for block in blocks:
        if block.file is not None:
            (folder / block.file).write_text(block.code.replace(IMAGE, docker.images.tiny))

    for block in (block for block in blocks if block.language == "console"):
        for line, expected in steps(block.code):
            output = typist.as_on_the_page(typist.types(line))
            assert comparable(output) == comparable(expected), line
            told = zip(SESSION.findall(expected), SESSION.findall(output), strict=True)
            typist.sessions = {**dict(told), **typist.sessions}  # the first run's is the one that is resumed

    assert sum(len(list(typed(block))) for block in blocks if block.language == "console") > 15
