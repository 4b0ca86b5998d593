"""`container-runner shim`: what stands for claude, with an engine that plays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from container_runner.agents import ClaudeRuntime
from container_runner.agents.packages import PACKAGES
from container_runner.cli.relay import check_reach
from container_runner.cli.shim import MARK
from container_runner.config.container import ContainerConfig
from container_runner.errors import ConfigError
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner
from tests import played_engine

COMMAND = str(Path(sys.executable).with_name("container-runner"))

AGENT = """\
#!/bin/sh
# Does what its last argument says.
for word; do :; done
case $word in
  show) printf '%s\\n' "$@" ;;
  odd) printf 'a\\r\\n\\377b'; printf 'e\\r\\nf' >&2; exit 7 ;;
  cat) cat; printf end ;;
  hostile) printf 'h\\303\\251 \\033]0;mine\\007\\n' >&2 ;;
  flood) trap 'echo term; exit 143' TERM; head -c 1000000 /dev/zero >&2; echo up; while :; do sleep 0.1; done ;;
  env) echo "$CLAUDE_CODE_ENTRYPOINT $SECRET" ;;
  wait) trap 'echo int; exit 9' INT; trap 'echo term; exit 143' TERM; echo up; while :; do sleep 0.1; done ;;
esac
"""


@attrs.frozen
class Place:
    """A workspace, and a claude that was installed."""

    folder: Path

    @property
    def claude(self) -> Path:
        return self.folder / "bin/claude"

    def shim(self, *words: str) -> subprocess.CompletedProcess[str]:
        flags = (f"--engine={self.folder}/engine/docker", "--image=some/image", f"--state-dir={self.folder}/state")
        command = [COMMAND, "shim", "claude", *flags, "--credentials=none", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=self.folder)

    def install(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.shim(f"--install={self.claude.parent}", *words)

    def run(self, *words: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self.claude, *words],
            cwd=self.folder / "work",
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
            env={**os.environ, **env},
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (program := tmp_path / "agent").write_text(AGENT)
    program.chmod(0o755)
    played_engine.write(tmp_path / "engine", program)
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(0o777)
    return Place(tmp_path)


@pytest.fixture
def installed(place: Place) -> Place:
    done = place.install()
    assert (done.returncode, done.stdout) == (0, f"{place.claude}\n"), done.stderr
    return place


def test_its_streams_and_code_are_claudes_byte_for_byte(installed: Place) -> None:
    done = installed.run("-p", "odd")

    assert (done.stdout, done.stderr, done.returncode) == (b"a\r\n\xffb", b"e\r\nf", 7)


def test_what_comes_on_stdin_is_claudes(installed: Place) -> None:
    data = bytes(range(256)) * 8000
    done = installed.run("-p", "cat", stdin=data)

    assert done.stdout == data + b"end"
    assert (done.stderr, done.returncode) == (b"", 0)


def test_its_arguments_are_claudes_with_the_boxs_paths(installed: Place) -> None:
    done = installed.run("--input-format=stream-json", "--add-dir", str(installed.folder / "work"), "--help", "show")

    words = ["--input-format=stream-json", "--add-dir", "/workspace", "--help", "show"]
    assert done.stdout.decode().splitlines() == words


def test_a_path_outside_of_every_mount_is_refused(installed: Place) -> None:
    done = installed.run("--add-dir", str(installed.folder), "show")

    assert (done.stdout, done.returncode) == (b"", 2)
    assert b"--add-dir" in done.stderr


def test_what_an_sdk_says_of_itself_goes_in_and_nothing_else(installed: Place) -> None:
    done = installed.run("-p", "env", CLAUDE_CODE_ENTRYPOINT="sdk-ts", SECRET="only-here")

    (run,) = (call["argv"] for call in played_engine.calls(installed.folder / "engine") if "prompt" in call)
    assert "--env=CLAUDE_CODE_ENTRYPOINT=sdk-ts" in run
    assert "only-here" not in " ".join(run)
    assert done.returncode == 0


@pytest.mark.parametrize("flag", ["-v", "--version"])
def test_it_says_its_version_without_a_container(installed: Place, flag: str) -> None:
    done = installed.run(flag)

    assert done.stdout.decode() == f"{PACKAGES['claude'].version} (Claude Code)\n"
    assert not (installed.folder / "engine/calls").exists()


@pytest.mark.parametrize(
    ("number", "said", "code"), [(signal.SIGINT, b"up\nint\n", 9), (signal.SIGTERM, b"up\nterm\n", 143)]
)
def test_signals_are_claudes(installed: Place, number: int, said: bytes, code: int) -> None:
    with subprocess.Popen(
        [installed.claude, "-p", "wait"],
        cwd=installed.folder / "work",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(number)
        rest = process.stdout.read()

    assert (first + rest, process.returncode) == (said, code)


def test_a_stderr_that_nobody_reads_holds_nothing_up(installed: Place) -> None:
    with subprocess.Popen(
        [installed.claude, "-p", "flood"],
        cwd=installed.folder / "work",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        up = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        term = process.stdout.readline()
        _, told = process.communicate(timeout=60)

    assert (up, term, process.returncode) == (b"up\n", b"term\n", 143)
    assert told.startswith(bytes(1_000_000))  # who comes late has missed nothing


def test_a_stderr_that_nobody_will_read_ends_nothing(installed: Place) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [installed.claude, "-p", "odd"],
            cwd=installed.folder / "work",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=writes,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writes)

    assert (done.stdout, done.returncode) == (b"a\r\n\xffb", 7)


def test_a_terminal_gets_nothing_that_controls_it(installed: Place) -> None:
    ours, theirs = os.openpty()
    try:
        subprocess.run(
            [installed.claude, "-p", "hostile"],
            cwd=installed.folder / "work",
            stdin=subprocess.DEVNULL,
            stderr=theirs,
            timeout=60,
            check=True,
        )
        told = os.read(ours, 1000).decode()
    finally:
        os.close(ours)
        os.close(theirs)

    assert told == "hé \N{REPLACEMENT CHARACTER}]0;mine\N{REPLACEMENT CHARACTER}\r\n"


@pytest.mark.parametrize("when", ["before it has begun", "while it works"])
def test_it_ends_with_who_has_started_it(installed: Place, when: str) -> None:
    # The grandparent of the shim holds its stdout open; its parent is killed.
    is_early = when == "before it has begun"
    text = installed.claude.read_text()
    installed.claude.write_text(text.replace("\nexec ", f"\necho $${'; kill -9 $PPID' * is_early}\nexec "))
    with subprocess.Popen(
        ["sh", "-c", f"exec 3<&0; {installed.claude} -p wait <&3 & wait"],
        cwd=installed.folder / "work",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        shim = int(parent.stdout.readline())
        up = None if is_early else parent.stdout.readline()
        if not is_early:
            parent.kill()
        try:
            said, _ = parent.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.kill(shim, signal.SIGKILL)
            raise

    assert (up, said) == ((None, b"") if is_early else (b"up\n", b"term\n"))


def test_a_folder_with_something_else_is_left_alone(place: Place) -> None:
    place.claude.parent.mkdir()
    place.claude.write_text("#!/bin/sh\necho mine\n")
    done = place.install()

    assert done.returncode == 2
    assert "remove it, or choose another folder" in done.stderr
    assert place.claude.read_text() == "#!/bin/sh\necho mine\n"

    place.claude.unlink()
    place.claude.symlink_to(place.folder / "agent")
    assert place.install().returncode == 2


def test_what_was_installed_is_installed_anew(installed: Place) -> None:
    installed.claude.write_bytes(MARK + b"exit 1\n")
    done = installed.install("--model=m")

    assert done.returncode == 0, done.stderr
    assert "--model=m" in installed.claude.read_text()
    assert installed.run("-p", "show").stdout.splitlines() == [b"--model=m", b"-p", b"show"]
    assert [path.name for path in installed.claude.parent.iterdir()] == ["claude"]


def test_a_workspace_may_not_hold_what_is_started_outside_of_its_box(place: Place) -> None:
    done = place.shim("--install=work/bin")
    assert done.returncode == 0, done.stderr
    command = [str(place.folder / "work/bin/claude"), "-p", "show"]
    ran = subprocess.run(command, cwd=place.folder / "work", capture_output=True, check=False)

    assert (ran.stdout, ran.returncode) == (b"", 2)
    assert b"install it elsewhere" in ran.stderr


def test_a_workspace_has_no_part_in_what_is_started(installed: Place) -> None:
    (installed.folder / "work/container_runner.py").write_text("print('mine')")
    (installed.folder / "work/json.py").write_text("print('mine')")

    assert b"mine" not in installed.run("-p", "show").stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--install=bin", "--env=A=b"), "--env can not be kept"),
        (("--install=bin", "--workspace=/tmp"), "leave it out"),
        (("--install=bin", "--", "-p"), "words can not be kept"),
        (("--install=bin", "--agent-kind=codex"), "agent_kind"),
        (("--install=bin", "--command=claude -p"), "--command"),
        (("--install=bin", "--command='"), "No closing quotation"),
    ],
)
def test_what_can_not_be_kept_is_refused(place: Place, words: tuple[str, ...], told: str) -> None:
    done = place.shim(*words)

    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr.replace("--agent-kind", "agent_kind")
    assert not (place.folder / "bin").exists()


def test_another_agent_has_no_shim(place: Place) -> None:
    done = subprocess.run([COMMAND, "shim", "gemini"], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "container-runner acp" in done.stderr


def test_a_workspace_that_holds_this_program_is_refused(tmp_path: Path) -> None:
    inside = ExecuteOptions(prompt="", agent=Agent(name="a", workspace=Path(sys.prefix).parent))
    runner = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="some/image"), tmp_path)

    with pytest.raises(ConfigError, match="which runs outside of its box; install the command elsewhere"):
        check_reach(runner, inside)

    check_reach(runner, attrs.evolve(inside, agent=Agent(name="a", workspace=tmp_path)))
    config = attrs.evolve(runner.config, workspace_mode="carried")
    check_reach(ContainerRunner(ClaudeRuntime(), config, tmp_path), inside)
