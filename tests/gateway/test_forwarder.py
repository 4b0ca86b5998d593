"""Which interpreter a forwarder gets."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from container_runner.config.paths import RUN_DIR
from container_runner.gateway.forwarder import forwarder

NAMED = "#!/bin/sh\necho {} >&2\n"
BARE_PERL = '#!/bin/sh\ncase $1 in -M*) echo "no Socket.pm" >&2; exit 2 ;; esac\necho perl >&2\n'


def picked(folder: Path, **programs: bytes | str) -> tuple[int, str]:
    """How the command of a forwarder ends where there are these programs, and what it says."""
    places = folder / "bin"
    places.mkdir()
    for name in ("head", "mkdir", "rm"):
        (places / name).symlink_to(f"/bin/{name}")
    for name, text in programs.items():
        (places / name).write_bytes(text.encode() if isinstance(text, str) else text)
        (places / name).chmod(0o755)
    command = [word.replace(RUN_DIR, str(folder)) for word in forwarder("abc", 1)]
    done = subprocess.run(
        ["/bin/sh", *command[1:]], env={"PATH": str(places)}, capture_output=True, text=True, check=False, timeout=30
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("first", ["perl", "python3", "node"])
def test_the_first_of_those_that_there_are(tmp_path: Path, first: str) -> None:
    names = ["perl", "python3", "node"]
    there = {name: NAMED.format(name) for name in names[names.index(first) :]}
    assert picked(tmp_path, **there) == (0, f"{first}\n")


def test_a_perl_without_its_modules_is_passed_by(tmp_path: Path) -> None:
    assert picked(tmp_path, perl=BARE_PERL, python3=NAMED.format("python3")) == (0, "python3\n")


def test_a_claude_that_is_a_script_is_none_that_can_run_ours(tmp_path: Path) -> None:
    assert picked(tmp_path, claude=NAMED.format("claude")) == (69, "container-runner: no-interpreter abc\n")


def test_a_claude_of_one_file_gets_ours_from_a_file_that_is_nobody_elses(tmp_path: Path) -> None:
    true = Path("/bin/true").read_bytes()
    assert true.startswith(b"\x7fELF")
    assert picked(tmp_path, claude=true) == (0, "")
    script = tmp_path / "forward-abc" / "forward.mjs"
    assert script.read_text().endswith("await new Promise(() => {});\n")
    assert (script.parent.stat().st_mode & 0o777) == 0o700
