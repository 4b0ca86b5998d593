"""The script in an ephemeral container, as PID 1 of a namespace of its own: no engine is needed for that, but root."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from container_runner.box import guest
from container_runner.box import script as texts
from container_runner.config import paths

RUN = "0123456789abcdef" * 2
TOKEN = "fedcba9876543210" * 2
AGENT = ["--setuid=1000", "--setgid=1000"]
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *AGENT]
STARTED = f"container-runner: started {TOKEN}\n"


@pytest.fixture(params=["dash", "bash", "busybox"])
def shell(request: pytest.FixtureRequest) -> list[str]:
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name} here")
    return [name, "sh"] if name == "busybox" else [name]


@pytest.fixture(scope="module", autouse=True)
def may_unshare() -> None:
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no namespace can be made: {done.stderr}")


@attrs.define
class Ended:
    """How a script has ended."""

    code: int
    out: str
    err: str
    seconds: float
    """Since its lease ended."""


class Script:
    """The script around an agent."""

    def __init__(self, shell: Sequence[str], folder: Path, command: Sequence[str], limit: int) -> None:
        seal, script = (text.replace(paths.RUN_DIR, str(folder)) for text in (texts.SEAL, texts.GUEST))
        self.process = subprocess.Popen(
            [*UNSHARE, *shell, "-c", seal, RUN, script, str(limit), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ["PATH"]},
        )

    def tell(self, prompt: bytes = b"", **fields: Any) -> None:
        """Write the header and the prompt; the prompt not, if it waits for its gateway."""
        assert self.process.stdin is not None
        usual: dict[str, Any] = {
            "token": TOKEN, "grace": 1, "mounts": [], "kernel": "k", "other_mounts": True, "values": {}
        }  # fmt: skip
        self.process.stdin.write(guest.header(prompt, **{**usual, **fields}))
        self.process.stdin.flush()

    def hear(self, line: str) -> str:
        """What it says on stderr up to and with a line."""
        assert self.process.stderr is not None
        heard = ""
        while line not in heard:
            heard += self.process.stderr.readline().decode() or pytest.fail(f"it ended with {heard!r}")
        return heard

    def end(self) -> Ended:
        """End the lease, and wait for its end."""
        began = time.monotonic()
        out, err = self.process.communicate(timeout=50)
        return Ended(self.process.returncode, out.decode("latin-1"), err.decode(), time.monotonic() - began)


Start = Callable[..., Script]


@pytest.fixture
def folder(open_folder: Path) -> Path:
    """Where the script keeps its files."""
    return open_folder


@pytest.fixture
def start(shell: list[str], folder: Path) -> Iterator[Start]:
    """Start an agent's command, or a script that waits for one, in each shell in turn."""
    scripts: list[Script] = []

    def make(*command: str, limit: int = 60) -> Script:
        scripts.append(Script(shell, folder, command, limit))
        return scripts[-1]

    yield make
    for script in scripts:
        script.process.kill()
        script.process.communicate()


def sh(script: str) -> tuple[str, ...]:
    return "sh", "-c", script


def test_an_agent_gets_its_prompt_and_its_end_is_told(start: Start) -> None:
    script = start(*sh("cat; echo oops >&2; exit 7"))

    script.tell(b"the\n\xff\nprompt")
    heard = script.hear(f"ended {TOKEN} 7\n")
    ended = script.end()

    assert heard == f"{STARTED}oops\ncontainer-runner: ended {TOKEN} 7\n"
    assert ended.out == f"the\n\xff\nprompt\ncontainer-runner: ended {TOKEN} 7\n"
    assert (ended.code, ended.err) == (0, "")


def test_what_an_agent_says_ends_with_a_line_of_ours(start: Start) -> None:
    script = start(*sh("printf 'no newline'"))
    script.tell()
    script.hear("ended")

    assert script.end().out == f"no newline\ncontainer-runner: ended {TOKEN} 0\n"


NAMES = {
    *re.findall(r"\b([a-z]+)=", texts.GUEST),
    *("token", "grace", "size", "kernel", "others", "number", "tops", "mounts", "files", "variables", "nl", "IFS"),
    "MYVAR",
}


def test_a_variable_may_be_called_as_one_of_the_scripts(start: Start) -> None:
    """`size` would cut the prompt, and `limit` the agent's time."""
    assert {"size", "limit", "run", "lines", "tmp"} <= NAMES
    script = start("env", "-0")

    script.tell(b"prompt", values=dict.fromkeys(NAMES, "it's 1\nof mine"))
    script.hear("ended")
    found = dict(pair.partition("=")[::2] for pair in script.end().out.split("\0"))

    assert {name: found.get(name) for name in NAMES} == dict.fromkeys(NAMES, "it's 1\nof mine")


@pytest.mark.parametrize("name", ["UID", "EUID", "GID", "PPID", "SHELLOPTS", "BASHOPTS", "LINENO", "RANDOM", "status"])
def test_a_variable_that_a_shell_keeps_for_itself_ends_nothing(start: Start, name: str) -> None:
    script = start(*sh('cat; printf %s "$MINE"'))

    script.tell(b"prompt ", values={name: "7", "MINE": "too"})
    script.hear("ended")

    assert script.end().out == f"prompt too\ncontainer-runner: ended {TOKEN} 0\n"


@pytest.mark.parametrize(
    "before", ["", "echo old >{}", "mkdir -m 777 {0}; : >{0}/x", "mkfifo {}", "ln -s /nowhere/at/all {}"]
)
def test_an_agents_settings_are_written_anew_whatever_lies_there(start: Start, folder: Path, before: str) -> None:
    """An agent in a kept container could leave a pipe, on which the next one's start would hang."""
    path = folder / "it's settings"
    subprocess.run(["sh", "-c", before.format(shlex.quote(str(path)))], check=True)
    script = start("cat", str(path))

    script.tell(settings={str(path): "{'a': \"b\\n\"}\n%s"})
    script.hear("ended")

    assert script.end().out.startswith("{'a': \"b\\n\"}\n%s\n")


def test_no_variable_is_in_the_environment_of_the_script(start: Start) -> None:
    script = start("sleep", "1000")
    script.tell(values={"TOKEN": "s3cr3t"})
    script.hear("started")

    child = f"/proc/{script.process.pid}/task/{script.process.pid}/children"
    environ = Path(f"/proc/{Path(child).read_text().strip()}/environ").read_bytes()

    assert b"s3cr3t" not in environ
    script.end()


def test_an_agents_signals_do_what_they_do_by_default(start: Start) -> None:
    script = start(*sh("kill -INT $$; kill -QUIT $$; echo alive"))
    script.tell()

    script.hear(f"ended {TOKEN} 130")


def test_an_agent_can_neither_read_nor_trace_nor_end_it(start: Start) -> None:
    probe = "for name in environ mem maps fd/0 exe; do cat /proc/1/$name >/dev/null 2>&1 && echo $name; done"
    script = start(*sh(f"{probe}; kill -KILL 1; kill -STOP 1; sleep 0.3; echo done"))
    script.tell()
    script.hear("ended")

    assert script.end().out.startswith("done\n")


def test_a_container_of_a_pool_waits_for_its_command(start: Start) -> None:
    script = start()
    assert script.hear("ready") == f"container-runner: up {RUN}\ncontainer-runner: ready {RUN}\n"

    script.tell(b"prompt", command=["sh", "-c", 'cat; printf "%s|" "$@"', "sh", "a b", "", "it's\nme"])
    script.hear("ended")

    assert script.end().out.startswith("prompta b||it's\nme|")


# The lease


def test_an_agent_waits_for_its_gateway(start: Start) -> None:
    script = start(*sh("cat; echo started"))
    script.tell(b"Hello", gated=True)
    time.sleep(0.3)
    assert script.process.stderr is not None
    assert select.select([script.process.stderr], [], [], 0) == ([], [], [])

    assert script.process.stdin is not None
    script.process.stdin.write(guest.GO + b"Hello")
    script.process.stdin.flush()
    script.hear(STARTED)
    script.hear(f"ended {TOKEN} 0")
    assert script.end().out.startswith("Hellostarted\n")


def test_a_gateway_that_is_there_already_may_come_with_the_header(start: Start) -> None:
    script = start(*sh("cat; echo started"))
    header = guest.header(
        b"Hello", token=TOKEN, grace=1, mounts=[], kernel="k", other_mounts=True, values={}, gated=True
    )
    assert script.process.stdin is not None
    script.process.stdin.write(header + guest.GO + b"Hello")
    script.process.stdin.flush()

    script.hear(f"ended {TOKEN} 0")
    assert script.end().out.startswith("Hellostarted\n")


def test_an_agent_whose_gateway_never_comes_is_not_started(start: Start, folder: Path) -> None:
    script = start(*sh("echo started"))
    script.tell(b"Hello", gated=True)
    ended = script.end()
    assert (ended.code, ended.out) == (texts.EXIT_NO_HEADER, "")
    assert not {path.name for path in folder.iterdir()} - {"sh"}  # neither the prompt nor a pipe


def test_when_the_lease_ends_the_agent_is_asked_to_end(start: Start) -> None:
    script = start(*sh("trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.05; done"))
    script.tell(grace=100)  # it does not wait so long
    script.hear("started")
    time.sleep(0.2)

    ended = script.end()

    assert (ended.code, ended.out) == (0, f"up\nasked\n\ncontainer-runner: ended {TOKEN} 5\n")


def test_an_agent_that_does_not_listen_ends_with_the_script(start: Start) -> None:
    """And so does all that it has started, wherever it hides."""
    script = start(*sh("trap '' TERM; (trap '' TERM; setsid sleep 1000) & echo up; while :; do sleep 1; done"))
    script.tell(grace=2)
    script.hear("started")
    time.sleep(0.3)

    ended = script.end()  # which waits for whoever holds the pipes

    assert (ended.code, ended.out, ended.err) == (0, "up\n", "")
    assert ended.seconds > 0.9


def test_what_left_the_agents_group_is_asked_too_and_gets_a_moment_to_clear_up(start: Start, folder: Path) -> None:
    """Such as a git, which has a lock to remove, though the agent itself ends at once."""
    lock = folder / "lock"
    tool = f"trap 'sleep 0.5; rm {lock}; exit' TERM; : >{lock}; echo up; while :; do sleep 0.05; done"
    script = start("sh", "-c", 'setsid sh -c "$0" & trap "exit 5" TERM; while :; do sleep 0.05; done', tool)
    script.tell(grace=10)
    script.hear("started")
    assert script.process.stdout is not None
    assert script.process.stdout.readline() == b"up\n"

    ended = script.end()

    assert not lock.exists()
    assert ended.seconds < 3


def test_an_agent_whose_time_is_over_is_asked_too(start: Start) -> None:
    script = start(*sh("trap 'exit 5' TERM; while :; do sleep 0.05; done"), limit=1)
    script.tell()

    script.hear(f"ended {TOKEN} 5")


@pytest.mark.parametrize("told", [b"", b"3\n", b"3\nab\nab\n"], ids=["nothing", "its size", "half of it"])
def test_without_a_whole_header_there_is_no_agent(start: Start, told: bytes) -> None:
    script = start("echo", "hello")
    assert script.process.stdin is not None
    script.process.stdin.write(told)

    ended = script.end()

    assert (ended.code, ended.out) == (texts.EXIT_NO_HEADER, "")


def test_with_half_a_prompt_there_is_no_agent(start: Start) -> None:
    script = start("echo", "hello")
    assert script.process.stdin is not None
    usual = {"token": TOKEN, "grace": 1, "mounts": [], "kernel": "k", "other_mounts": True, "values": {}}
    script.process.stdin.write(guest.header(b"the whole prompt", **usual)[:-1])  # type: ignore[arg-type]  # the fields vary

    ended = script.end()

    assert (ended.code, ended.out) == (texts.EXIT_REFUSED, "")
    assert ended.err == f"container-runner: prompt-lost {TOKEN}\n"


# Refusals


@pytest.mark.parametrize("command", ["nowhere", "/nowhere/at/all"])
def test_a_command_that_is_not_there(start: Start, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # whose folders everybody may look into
    script = start(command)
    script.tell()

    ended = script.end()

    assert (ended.code, ended.out) == (texts.EXIT_NO_COMMAND, "")
    assert ended.err == f"container-runner: no-command {TOKEN}\n"


def test_a_command_that_can_not_be_run(start: Start, shell: list[str]) -> None:
    script = start("/etc")
    script.tell()

    ended = script.end()

    told = "no-command" if shell[0] == "bash" else "not-executable"  # it finds no command in it
    code = {"no-command": texts.EXIT_NO_COMMAND, "not-executable": texts.EXIT_NOT_EXECUTABLE}[told]
    assert (ended.code, ended.out) == (code, "")
    assert ended.err == f"container-runner: {told} {TOKEN}\n"


# The mounts

INFO = """\
20 1 0:30 / / rw - overlay overlay rw
21 20 0:31 / /proc rw - proc proc rw
22 20 0:40 / /tmp rw,nosuid - tmpfs tmpfs rw
23 20 8:1 /home/me/a\\040b /workspace rw - ext4 /dev/sda1 rw
24 23 8:1 /home/me/a\\040b/.git/hooks /workspace/.git/hooks ro - ext4 /dev/sda1 rw
25 23 0:41 / /workspace/state ro - tmpfs tmpfs ro
26 20 8:1 /etc/hosts /etc/hosts rw - ext4 /dev/sda1 rw
"""
PLANNED = [
    "/tmp rw tmpfs /",
    "/workspace/state ro tmpfs /",
    "/workspace rw 8:1 /home/me/a\\040b",
    "/workspace/.git/hooks ro 8:1 /home/me/a\\040b/.git/hooks",
]
SWAPPED = INFO.replace("8:1 /home/me/a\\040b /workspace", "8:1 /home/you /workspace")
BELOW = INFO + "27 23 8:2 / /workspace/data rw - ext4 /dev/sdb rw\n"
ABOVE = INFO + "27 23 8:2 / /workspace rw - ext4 /dev/sdb rw\n"

CARRIED = """\
20 1 0:30 / / rw - overlay overlay rw,lowerdir=/engine/l,upperdir=/engine/u,workdir=/engine/w
21 20 0:40 / /tmp rw,nosuid - tmpfs tmpfs rw
22 20 0:50 / /workspace rw shared:7 - overlay overlay rw,lowerdir=/a\\040b\\134:c,upperdir=/u,workdir=/w,xino=on
"""
LAYERS = "lowerdir=/a\\040b\\134:c,upperdir=/u,workdir=/w"
PLANNED_LAYERS = ["/tmp rw tmpfs /", f"/workspace rw overlay {LAYERS}"]
VOLUME = CARRIED.replace("0:50 /", "8:1 /engine/volumes/NAME/_data")
PLANNED_VOLUME = ["/tmp rw tmpfs /", "/workspace rw volume NAME"]

CHECKS: list[tuple[str, str, list[str], dict[str, Any], str | None]] = [
    ("as planned", INFO, PLANNED, {}, ""),
    ("another folder", SWAPPED, PLANNED, {}, "/workspace"),
    ("another folder, of another kernel's", SWAPPED, PLANNED, {"kernel": "another"}, ""),
    ("another device", INFO.replace("8:1 /home/me/a\\040b /w", "8:2 /home/me/a\\040b /w"), PLANNED, {}, "/workspace"),
    ("writable", INFO.replace("hooks ro", "hooks rw"), PLANNED, {}, "/workspace/.git/hooks"),
    ("writable, of another kernel's", INFO.replace("hooks ro", "hooks rw"), PLANNED, {"kernel": "x"}, None),
    ("read-only", INFO.replace("/workspace rw", "/workspace ro"), PLANNED, {}, "/workspace"),
    ("missing", INFO.replace("/workspace/.git/hooks ro", "/elsewhere ro"), PLANNED, {}, None),
    ("a tmpfs that is none", INFO.replace("- tmpfs tmpfs ro", "- ext4 /dev/sda1 ro"), PLANNED, {}, "/workspace/state"),
    ("a tmpfs by another name, of another kernel's", INFO.replace("- tmpfs", "- none"), PLANNED, {"kernel": "x"}, ""),
    ("a tmpfs that is writable", INFO.replace("state ro", "state rw"), PLANNED, {}, "/workspace/state"),
    ("one more below", BELOW, PLANNED, {}, "/workspace/data"),
    ("one more below, and others may be", BELOW, PLANNED, {"other_mounts": True}, ""),
    ("one below that came along", BELOW, [*PLANNED, "/workspace/data * 8:2 /"], {}, ""),
    ("another one below than may come along", BELOW, [*PLANNED, "/workspace/data * 8:3 /"], {}, "/workspace/data"),
    ("one that may come along and did not", INFO, [*PLANNED, "/workspace/data * 8:2 /"], {}, ""),
    ("over another one", ABOVE, PLANNED, {}, "/workspace"),
    ("over another one, though others may be", ABOVE, PLANNED, {"other_mounts": True}, "/workspace"),
    ("unknown here, and of the right mode", INFO, ["/workspace rw - -"], {"kernel": "", "other_mounts": True}, ""),
    ("layers", CARRIED, PLANNED_LAYERS, {}, ""),
    ("layers without more options", CARRIED.replace(",xino=on", ""), PLANNED_LAYERS, {}, ""),
    ("layers over another folder", CARRIED.replace("/a", "/b"), PLANNED_LAYERS, {}, "/workspace"),
    ("layers into another folder", CARRIED.replace("=/u,", "=/u2,"), PLANNED_LAYERS, {}, "/workspace"),
    ("layers of more folders", CARRIED.replace(":c,", ":c:/d,"), PLANNED_LAYERS, {}, "/workspace"),
    ("layers of another kernel's", CARRIED, PLANNED_LAYERS, {"kernel": "another"}, "/workspace"),
    ("a bind in place of layers", CARRIED.replace("overlay overlay rw,lowerdir=/a", "ext4 x"), PLANNED_LAYERS, {},
     "/workspace"),
    ("a volume", VOLUME, PLANNED_VOLUME, {}, ""),
    ("a volume, of another kernel's", VOLUME, PLANNED_VOLUME, {"kernel": "x"}, ""),
    ("another volume", VOLUME.replace("NAME", "OTHER"), PLANNED_VOLUME, {}, "/workspace"),
    ("a name that only begins the same", INFO, ["/work rw 8:1 /x"], {}, None),
]  # fmt: skip
"""The last is the place that is named, "" if all is well, None for a refusal that may name any."""


@pytest.mark.parametrize(
    ("table", "planned", "others", "refused"), [case[1:] for case in CHECKS], ids=[case[0] for case in CHECKS]
)
def test_what_is_mounted_is_held_against_what_was_planned(
    shell: list[str], tmp_path: Path, table: str, planned: list[str], others: dict[str, Any], refused: str | None
) -> None:
    (tmp_path / "mountinfo").write_text(table)
    (tmp_path / "boot_id").write_text("k\n")
    check = texts._MOUNTS.replace("/proc/self/mountinfo", str(tmp_path / "mountinfo"))
    check = check.replace("/proc/sys/kernel/random/boot_id", str(tmp_path / "boot_id"))
    fields: dict[str, Any] = {"token": TOKEN, "grace": 1, "kernel": "k", "other_mounts": False, "values": {}, **others}
    _, _, header = guest.header(b"", mounts=planned, **fields).partition(b"\n")
    (tmp_path / "sh").symlink_to(shutil.which(shell[0]) or "")

    done = subprocess.run(
        [tmp_path / "sh" if len(shell) == 1 else shell[0], *shell[1:], "-c",
         f"set -f\nnl='\n'\nrefuse() {{ echo \"$*\"; exit 69; }}\n{check}\neval \"$0\"\ncheck_mounts", header],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.stderr == ""
    if refused is None:
        assert done.stdout.startswith("mounts")
    else:
        assert done.stdout == (f"mounts {refused}\n" if refused else "")


def test_an_agent_that_takes_its_time_is_left_alone(start: Start) -> None:
    """Several ticks go by. (In a trap, bash takes a bare `return` for the failure of the command before it.)"""
    script = start(*sh("sleep 7; exit 4"))
    script.tell()

    script.hear(f"ended {TOKEN} 4")


def test_a_setup_and_a_check_come_around_an_agent(start: Start) -> None:
    script = start(*sh("cat; echo agent >&2"))

    script.tell(
        b"prompt\n", setup="cat; echo $NAME; echo setup", check="cat; echo $NAME; exit 4", values={"NAME": "mine"}
    )
    heard = script.hear(f"ended {TOKEN} 4 check\n")
    ended = script.end()

    ours = [f"container-runner: {word} {TOKEN}\n" for word in ("setup", "check")]
    last = f"container-runner: ended {TOKEN} 4 check\n"
    assert heard == f"{STARTED}{ours[0]}mine\nsetup\nagent\n{ours[1]}mine\n{last}"
    assert ended.out == f"prompt\n\n{ours[1]}\n{last}"  # what they say themselves is on stderr


def test_where_the_setup_fails_there_is_no_agent_and_no_check(start: Start) -> None:
    script = start(*sh("echo agent"))

    script.tell(setup="exit 3", check="echo check >&2")
    heard = script.hear("ended")
    ended = script.end()

    assert heard == f"{STARTED}container-runner: setup {TOKEN}\ncontainer-runner: ended {TOKEN} 3 setup\n"
    assert ended.out == f"\ncontainer-runner: ended {TOKEN} 3 setup\n"


def test_an_agent_that_failed_is_not_checked(start: Start) -> None:
    script = start(*sh("exit 2"))

    script.tell(check="true")
    heard = script.hear("ended")

    assert heard == f"{STARTED}container-runner: ended {TOKEN} 2\n"


@pytest.mark.parametrize("step", ["setup", "check"])
def test_when_the_lease_ends_what_comes_around_an_agent_ends_too(start: Start, step: str) -> None:
    script = start(*sh("true"))
    script.tell(b"", **{step: "trap 'echo asked; exit' TERM; echo ready; while :; do sleep 0.1; done"})
    script.hear("ready")

    ended = script.end()

    assert "asked" in ended.err
    assert ended.seconds < 4
    assert ("check" in ended.err) == (step == "check")


def test_an_agent_that_was_asked_to_end_is_not_checked(start: Start) -> None:
    script = start(*sh("trap 'exit 0' TERM; echo ready >&2; while :; do sleep 0.1; done"))
    script.tell(check="echo checked >&2")
    script.hear("ready")

    ended = script.end()

    assert "check" not in ended.err


@pytest.mark.parametrize("at", ["behind", "link", "path"])
def test_a_program_in_a_folder_of_roots_is_out_of_reach_and_not_missing(start: Start, tmp_path: Path, at: str) -> None:
    (closed := tmp_path / "closed").mkdir(mode=0o700)
    (closed / "bin").mkdir()
    (program := closed / "bin" / "mine").write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (link := Path(tempfile.mkdtemp(dir="/tmp")) / "mine").symlink_to(program)
    link.parent.chmod(0o755)
    given = {"behind": str(program), "link": str(link), "path": "mine"}[at]

    with pytest.MonkeyPatch.context() as patch:
        if at == "path":
            patch.setenv("PATH", f"{closed}/bin:{os.environ['PATH']}")
        script = start(given)
        script.tell()
        ended = script.end()
    shutil.rmtree(link.parent)

    assert ended.code == texts.EXIT_NOT_EXECUTABLE
    assert re.fullmatch(rf"container-runner: not-executable {TOKEN} (/\S+)\n", ended.err)


# A live agent


class Feed:
    """The exec that carries what a live agent is told."""

    def __init__(self, shell: Sequence[str], folder: Path) -> None:
        text = texts.FEED.replace(paths.RUN_DIR, str(folder))
        self.process = subprocess.Popen(
            [*("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"), *shell, "-c", text, RUN],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.stdin, self.stderr = self.process.stdin, self.process.stderr

    def give(self, data: bytes) -> None:
        self.stdin.write(data)
        self.stdin.flush()


@pytest.fixture
def feed(shell: list[str], folder: Path) -> Iterator[Callable[[], Feed]]:
    feeds: list[Feed] = []

    def make() -> Feed:
        feeds.append(Feed(shell, folder))
        return feeds[-1]

    yield make
    for each in feeds:
        each.process.kill()
        each.process.wait()
        each.stderr.close()
        with contextlib.suppress(BrokenPipeError):
            each.stdin.close()


def test_a_live_agent_gets_what_it_is_told_and_ends_with_it(start: Start, feed: Callable[[], Feed]) -> None:
    script = start(*sh('read one; echo "got $one"; read two; echo "got $two"; cat; echo over'))
    script.tell(live=True)
    script.hear("started")

    told = feed()
    assert told.stderr.readline() == guest.feeding_line(RUN) + b"\n"
    told.give(b"first\n")
    told.give(b"second\n")
    told.stdin.close()

    script.hear(f"ended {TOKEN} 0")
    assert script.end().out.startswith("got first\ngot second\nover\n")
    assert told.process.wait(10) == 0


def test_a_live_agent_gets_what_it_was_told_by_who_has_gone_before(
    start: Start, feed: Callable[[], Feed], folder: Path
) -> None:
    script = start(*sh("cat; echo over"))
    script.tell(live=True, setup=f"until [ -e {folder}/on ]; do sleep 0.05; done")
    script.hear("setup")
    told = feed()
    told.give(b"first\n")
    told.stdin.close()
    assert told.process.wait(10) == 0

    (folder / "on").touch()

    script.hear(f"ended {TOKEN} 0")
    assert script.end().out.startswith("first\nover\n")


def test_a_live_agent_waits_for_its_input_and_ends_with_its_lease(start: Start) -> None:
    script = start(*sh("echo up"))
    script.tell(live=True)
    script.hear("started")
    time.sleep(0.3)

    ended = script.end()

    assert ended.out == f"\ncontainer-runner: ended {TOKEN} 143\n"
    assert ended.seconds < 5


def test_what_carries_the_input_does_not_wait_for_an_agent_that_is_gone(start: Start, feed: Callable[[], Feed]) -> None:
    script = start(*sh("read one; exec <&-; exit 5"))
    script.tell(live=True)
    script.hear("started")
    told = feed()
    told.stderr.readline()
    told.give(b"one\n")
    script.hear(f"ended {TOKEN} 5")
    script.end()

    told.give(b"nobody reads this\n")

    assert told.process.wait(10) != 0


@pytest.mark.parametrize("stopped", [False, True])
def test_an_agent_that_does_not_read_its_input_ends_with_its_lease(
    start: Start, feed: Callable[[], Feed], stopped: bool
) -> None:
    """The pipe is full, and who fills it waits: the lease is another one."""
    script = start(*sh("kill -STOP $$" if stopped else "trap '' TERM; while :; do sleep 1; done"))
    script.tell(live=True)
    script.hear("started")
    told = feed()
    told.stderr.readline()
    filler = subprocess.Popen(["head", "-c", "1000000", "/dev/zero"], stdout=told.stdin)  # two pipes hold 128 KiB
    while b"pipe_write" not in Path(f"/proc/{told.process.pid}/wchan").read_bytes():
        time.sleep(0.01)

    assert script.end().seconds < 8
    assert told.process.wait(10) != 0
    told.stdin.close()
    assert filler.wait(10) != 0


def test_no_fifo_lies_where_others_may_not_open_it(start: Start, folder: Path) -> None:
    """Most Linux systems let nobody open another one's FIFO in a folder with a sticky bit, see `script.INPUT`."""
    folder.chmod(0o1777)
    script = start(*sh("cat"))
    script.tell(live=True)
    script.hear("started")

    (fifo,) = (path for path in folder.rglob("*") if path.is_fifo())

    assert fifo.parent.stat().st_mode & 0o7777 == 0o711
    assert fifo.stat().st_mode & 0o777 == 0o622
    script.end()
