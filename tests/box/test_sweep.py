"""The sweep of a kept container, in a namespace of its own, beside a process that it is to leave alone. Needs root."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from container_runner.box.sweep import SWEEP
from container_runner.config.paths import MARK

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

FORKS = """\
import os
memory = b"x" * (100 << 20)  # so that a fork takes long, and is what it is at when it is stopped
print("forks", flush=True)
while True:
    if os.fork():
        os._exit(0)
"""

AGENT = "setpriv --reuid=1000 --regid=1000 --clear-groups"
SCENE = f"""\
mkfifo fifo
{MARK}=theirs {AGENT} sleep 1000 &
other=$!
{MARK}=mine {AGENT} setsid "$@" alive >fifo &
read -r line <fifo
run=mine {AGENT} $0 2>/dev/null
echo "swept $?"
kill -0 "$other" && read -r line </proc/$other/stat && echo "$line"
read -r line
"""
SCRIPT = f"""\
now() {{ clock=0; }}  # it may take what it takes
{SWEEP}
look "$$"
mine=$uid
others() {{ :; }}
sweep
"""


def is_alive(token: str) -> bool:
    """Whether a program that was given this lives, looked for so often that it can not hide between two lives."""
    for _ in range(100):
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (folder / "cmdline").read_bytes().endswith(f"\0{token}\0alive\0".encode()):
                    return True
    return False


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
def test_what_forks_and_ends_all_the_time_is_caught_in_the_middle_of_a_fork(shell: str, open_folder: Path) -> None:
    """The child comes out when everything has been looked at once."""
    if shutil.which(shell.split()[0]) is None:
        pytest.skip(f"there is no {shell} here")
    (open_folder / "script").write_text(SCRIPT)
    token = secrets.token_hex(8)
    command = [*UNSHARE, "sh", "-c", SCENE, f"{shell} script", sys.executable, "-c", FORKS, token]
    with subprocess.Popen(
        command, cwd=open_folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as scene:
        assert scene.stdin is not None
        assert scene.stdout is not None
        try:
            swept = scene.stdout.readline() or pytest.skip(f"no namespace can be made: {scene.communicate()[1]}")
            other = scene.stdout.readline()
            left = is_alive(token)
        finally:
            scene.stdin.close()

    assert (swept, left) == ("swept 0\n", False)
    assert other.split()[2] in "RSD"  # it goes on
