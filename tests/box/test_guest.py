"""The scripts in the container: that every shell can read them, what they are told, and what they report."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container_runner.box import guest
from container_runner.box import script as texts
from container_runner.box.guest import Report
from container_runner.config import paths

RUN = "0123456789abcdef" * 2
TOKEN = "fedcba9876543210" * 2
SHELLS = [["sh"], ["dash"], ["bash"], ["busybox", "sh"]]
SCRIPTS = {"SEAL": texts.SEAL, "KEEPER": texts.KEEPER, "JOIN": texts.JOIN, "GUEST": texts.GUEST}

shells = pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
scripts = pytest.mark.parametrize("script", SCRIPTS)


def present(shell: list[str]) -> list[str]:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"there is no {shell[0]} here")
    return shell


@scripts
@shells
def test_every_shell_reads_every_script(shell: list[str], script: str) -> None:
    done = subprocess.run([*present(shell), "-n", "-c", SCRIPTS[script]], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@scripts
def test_a_script_has_nothing_of_bash(script: str) -> None:
    # `[[`, `==`, arrays, `local`, `function`, here-strings, process substitution.
    assert not re.search(r"\[\[|==|\blocal\b|\bfunction\b|<<<|<\(|\$\(\(\(|=\(|&>", SCRIPTS[script])


BUILT_IN = {
    *(
        "break",
        "case",
        "cd",
        "command",
        "continue",
        "do",
        "done",
        "echo",
        "elif",
        "else",
        "esac",
        "eval",
        "exec",
        "exit",
        "export",
    ),
    *("fi", "for", "if", "jobs", "kill", "printf", "read", "return", "set", "shift", "then", "trap", "true", "ulimit"),
    *("umask", "unset", "until", "while"),
}


@scripts
def test_a_script_uses_no_programs_but_those_that_are_asked_for(script: str) -> None:
    text = re.sub(
        r"'[^']*'|\$\{[^}]*\}|\$\(\([^)]*\)\)", "''", SCRIPTS[script]
    )  # what is said or reckoned is no program
    ours = {"sh", *re.findall(r"^(\w+)\(\) \{", text, re.MULTILINE)}
    place = r"(?:^|[;|&({]|\b(?:do|then|else|until|while|if)\b)\s*"
    words = set(re.findall(place + r"([a-z]+)\b(?![=(;)])", text, re.MULTILINE))

    assert "head" in words or script != "GUEST"
    assert words <= {*texts.TOOLS, *BUILT_IN, *ours}


def test_the_end_of_an_ephemeral_run_forks_nothing_and_writes_no_file() -> None:
    """What needs a process or a file there, an agent could keep from happening."""
    end = texts.GUEST[texts.GUEST.index("\nstop() {") :]

    assert not {tool for tool in texts.TOOLS if re.search(rf"\b{tool}\b", end.replace("while sleep 2", ""))}
    assert not re.search(r"\$\([^(]|`|^\s*\(", end, re.MULTILINE)


def test_a_group_is_signalled_in_the_one_spelling_that_every_shell_takes() -> None:
    for script in SCRIPTS.values():
        assert not re.search(r"kill -s|kill -- |kill -TERM -- |pkill|killall", script)


def test_no_script_traps_the_end_of_a_child() -> None:
    """dash and ash leave `read` for it, and an orphan's end would look like the lease's."""
    for script in SCRIPTS.values():
        assert not re.search(r"trap .*CHLD", script)


def test_our_folders_lie_below_one_root() -> None:
    for path in (paths.RUN_DIR, paths.HOME, paths.SESSIONS):
        assert path.startswith(f"{paths.ROOT}/")


# What the script is told on stdin

READ = """\
IFS= read -r lines
header= nl='
'
while [ "$lines" -gt 0 ]; do
  IFS= read -r line || exit 70
  header=$header$line$nl lines=$((lines - 1))
done
set -- as before
eval "$header"
eval "$variables" 2>/dev/null
printf '%s\\0' "$token" "$grace" "$size" "$kernel" "$others" "$number" "$tops" "$mounts" "$#" "$@"
printf 'variables\\0'
env -0
printf 'rest\\0'
cat
"""
"""How GUEST reads its header, and then all that it has got of it."""

assert READ[READ.index("IFS= read -r line ||") :].startswith("IFS= read -r line || exit 70\n  header=$header$line$nl")
assert '  header=$header$line$nl lines=$((lines - 1))\ndone\neval "$header"\n' in texts.GUEST


def header(prompt: bytes = b"", **others: Any) -> bytes:
    fields: dict[str, Any] = {
        "token": TOKEN, "grace": 5, "mounts": [], "kernel": "k", "other_mounts": False, "values": {}, **others
    }  # fmt: skip
    return guest.header(prompt, **fields)


def understood(shell: Sequence[str], told: bytes) -> tuple[list[bytes], dict[bytes, bytes], bytes]:
    """What a shell takes from a header: its fields and the command, the variables, and what is left on stdin."""
    done = subprocess.run(
        [*shell, "-c", READ], input=told, capture_output=True, check=False, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.stderr == b""
    before, _, rest = done.stdout.partition(b"rest\0")
    fields, _, variables = before.partition(b"variables\0")
    pairs = (pair.partition(b"=") for pair in variables.split(b"\0")[:-1])
    return fields.split(b"\0")[:-1], {name: value for name, _, value in pairs}, rest


@pytest.fixture(params=SHELLS[1:4], ids=lambda shell: shell[0])
def shell(request: pytest.FixtureRequest) -> list[str]:
    return present(request.param)


def test_every_field_arrives(shell: list[str]) -> None:
    mounts = ["/tmp rw tmpfs /", "/workspace rw 8:1 /home/it's\\040mine", "/workspace/below * 0:4 /"]

    fields, _, rest = understood(shell, header(b"the\nprompt\n", grace=7, mounts=mounts, other_mounts=True))

    assert fields == [
        *(TOKEN.encode(), b"7", b"11", b"k", b"yes", b"2"),
        b"/tmp\n/workspace",
        b"\n/tmp rw tmpfs /\n/workspace rw 8:1 /home/it's\\040mine\n/workspace/below * 0:4 /\n",
        *(b"2", b"as", b"before"),
    ]
    assert rest == b"the\nprompt\n"


def test_a_mount_over_another_one_is_one_place(shell: list[str]) -> None:
    fields, _, _ = understood(shell, header(mounts=["/a rw 8:1 /x", "/a ro 8:1 /y", "/b ro tmpfs /"]))

    assert fields[5:7] == [b"2", b"/a\n/b"]


@pytest.mark.parametrize("command", [["claude"], ["a b", "", "-x", "--", "$HOME", "*", "'", '"', "a\nb", "\\n"]])
def test_a_command_takes_the_place_of_the_arguments(shell: list[str], command: list[str]) -> None:
    fields, _, _ = understood(shell, header(command=command))

    assert fields[8:] == [str(len(command)).encode(), *(word.encode() for word in command)]


def test_without_a_command_the_arguments_are_left_as_they_are(shell: list[str]) -> None:
    assert b"set --" not in header()
    assert understood(shell, header())[0][8:] == [b"2", b"as", b"before"]


EVERY_BYTE = bytes(range(1, 256))
HARD = [
    EVERY_BYTE,
    EVERY_BYTE[::-1],
    b"",
    b"\n",
    b"a\n",
    b"\n\na\n\n",
    b"'\n'",
    b"'; exit 1; '",
    b"$(exit 1) `exit 1` $PATH \\",
    b"\\\n\\",
    b"\x01\x7f\x01\x01\x7f",  # bash marks its own words with these
    b"\xff\xfe\xc3",
    "ä€😀\u2028".encode(),
    b"-n",
    b" \t a  b \r\n",
    b"x" * 130_000,
]


def text(data: bytes) -> str:
    """As Python gives a variable or an argument of any bytes."""
    return data.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("data", HARD, ids=range(len(HARD)))
def test_every_byte_but_nul_comes_back(shell: list[str], data: bytes) -> None:
    told = header(data, values={"VALUE": text(data), "OTHER": "x"}, command=["agent", text(data)])

    fields, variables, rest = understood(shell, told)

    assert (variables[b"VALUE"], variables[b"OTHER"]) == (data, b"x")
    assert fields[8:] == [b"2", b"agent", data]
    assert rest == data


BYTES = st.binary(max_size=60).map(lambda data: data.replace(b"\0", b""))
BYTES |= st.text("'\\\n\"$`; a!\x01", max_size=20).map(str.encode)


@settings(max_examples=40)
@given(
    values=st.dictionaries(st.from_regex(r"X[A-Za-z0-9_]{0,8}", fullmatch=True), BYTES, max_size=3),
    command=st.lists(BYTES, max_size=3),
    prompt=st.binary(max_size=60),
)
@pytest.mark.parametrize("name", ["dash", "bash", "busybox"])
def test_whatever_is_given_comes_back(
    name: str, values: Mapping[str, bytes], command: list[bytes], prompt: bytes
) -> None:
    shell = present([name, "sh"] if name == "busybox" else [name])
    told = header(prompt, values={key: text(value) for key, value in values.items()}, command=map(text, command))

    fields, variables, rest = understood(shell, told)

    assert {key.encode(): value for key, value in values.items()}.items() <= variables.items()
    assert fields[9:] == (command or [b"as", b"before"])
    assert rest == prompt


def test_the_number_in_front_counts_the_lines_of_the_header_alone() -> None:
    told = header(b"1\n2\n3\n", values={"A": "x\ny\nz"}, command=["a\nb"])

    first, _, rest = told.partition(b"\n")
    assert rest.split(b"\n", int(first))[-1] == b"1\n2\n3\n"


# What the script reports

TOLD: list[tuple[str, dict[str, object]]] = [
    ("", {}),
    (f"started {TOKEN}", {}),
    (f"ready {RUN}", {}),
    (f"missing {RUN} mkfifo wc", {"refusal": "missing", "detail": ("mkfifo", "wc")}),
    (f"other-sh {RUN}", {"refusal": "other-sh"}),
    (f"unsealed {RUN}", {"refusal": "unsealed"}),
    (f"unsealed {RUN} unsealed", {"refusal": "unsealed", "detail": ("unsealed",)}),
    (f"mounts {TOKEN}", {"refusal": "mounts"}),
    (f"mounts {TOKEN} /workspace/\xe4", {"refusal": "mounts", "detail": ("/workspace/\ufffd",)}),
    (f"no-command {TOKEN}", {"refusal": "no-command"}),
    (f"not-executable {TOKEN}", {"refusal": "not-executable"}),
    (f"prompt-lost {TOKEN}", {"refusal": "prompt-lost"}),
    (f"oom {TOKEN} 3", {"oom_kills": 3}),
    (f"oom {TOKEN} many", {}),
    (f"oom {TOKEN} 3 4", {}),
    (f"ended {TOKEN} 0", {"ended": 0}),
    (f"ended {TOKEN} 143", {"ended": 143}),
    (f"ended {TOKEN} 3 setup", {"ended": 3, "step": "setup", "step_code": 3}),
    (f"ended {TOKEN} 0 check", {"ended": 0, "step": "check", "step_code": 0}),
    (f"ended {TOKEN} 3 check", {"ended": 0, "step": "check", "step_code": 3}),
    (f"ended {TOKEN} 3 else", {"ended": 3}),
    (f"ended {TOKEN} x", {}),
    (f"ended {TOKEN} -1", {}),
    (f"ended {TOKEN} 9999999999", {}),
    (f"ended {TOKEN}", {}),
    (f"something-new {TOKEN} 1 2 3", {}),
]


def parse(stderr: bytes) -> tuple[Report, bytes]:
    return Report.parse(stderr, RUN, TOKEN)


@pytest.mark.parametrize(
    ("said", "expected"), TOLD, ids=[said.replace(RUN, "RUN").replace(TOKEN, "TOKEN") or "nothing" for said, _ in TOLD]
)
def test_a_line_of_the_script(said: str, expected: dict[str, Any]) -> None:
    report, rest = parse(f"container-runner: {said}\n".encode("latin-1") if said else b"")

    assert report == Report(**expected)
    assert rest == b""


@pytest.mark.parametrize("word", guest.REFUSALS)
def test_every_refusal_is_one_that_a_script_makes(word: str) -> None:
    assert re.search(rf"refus(?:e|al=)\"?.*\b{word}\b", "".join(SCRIPTS.values()))


@pytest.mark.parametrize(
    "said",
    [
        "oom 3",
        "ended 3",
        "no-command",
        f"ended {TOKEN[:-1]} 3",
        f"ended {TOKEN}0 3",
        f"ended x{TOKEN} 3",
        f"ended {TOKEN.upper()} 3",
        f"ENDED {TOKEN} 3",
        f"ended  {TOKEN} 3",
        "",
        "ended",
    ],
)
def test_a_line_that_lacks_the_token_is_the_agents_own(said: str) -> None:
    stderr = f"container-runner: {said}\n".encode()

    assert parse(stderr) == (Report(), stderr)


def test_what_was_lost_on_stderr_is_told_by_stdout_and_the_exit_code() -> None:
    ended, _ = Report.parse(b"said", RUN, TOKEN, end_line=guest.ended_line(TOKEN) + b"3")
    refused, stderr = Report.parse(b"said", RUN, TOKEN, exit_code=texts.EXIT_NO_COMMAND)

    assert (ended.ended, ended.refusal) == (3, None)
    assert (refused.ended, refused.refusal, stderr) == (None, "no-command", b"said")


def test_our_lines_are_taken_out_of_what_the_agent_wrote() -> None:
    stderr = f"before\ncontainer-runner: ended {TOKEN} 3\nafter \xff\n".encode("latin-1")

    report, rest = parse(stderr)

    assert rest == b"before\nafter \xff\n"
    assert report.ended == 3


def test_a_line_of_ours_behind_one_that_the_agent_did_not_end_is_found() -> None:
    report, rest = parse(f"half a line container-runner: ended {TOKEN} 3\n".encode())

    assert (report.ended, rest) == (3, b"half a line ")


@pytest.mark.parametrize("step", guest.STEPS)
def test_what_a_step_has_said_is_told_apart_from_what_came_before(step: str) -> None:
    said = f"oops\ncontainer-runner: {step} {TOKEN}\n2 failed\ncontainer-runner: ended {TOKEN} 1 {step}\n"

    assert parse(said.encode())[1] == b"2 failed\n"
    assert parse(said.partition("2 ")[2].encode())[1] == b"failed\n"  # the beginning was cut off


def test_of_several_lines_the_last_counts() -> None:
    stderr = f"container-runner: oom {TOKEN} 1\ncontainer-runner: oom {TOKEN} 2\n".encode()

    assert parse(stderr)[0].oom_kills == 2


@given(st.binary())
def test_no_stderr_makes_it_fail(stderr: bytes) -> None:
    report, rest = parse(stderr)

    assert len(rest) <= len(stderr)
    assert isinstance(report, Report)


WORDS = ["ended", "oom", "mounts", "missing", RUN, TOKEN, "0", "1e9", "-1", "\xff", "container-runner:"]


@given(st.lists(st.sampled_from(WORDS)))
def test_no_words_make_it_fail(words: list[str]) -> None:
    parse(b"container-runner: " + " ".join(words).encode() + b"\n")


def test_the_lines_that_are_waited_for_are_those_that_the_script_says() -> None:
    assert guest.up_line(RUN) == f"container-runner: up {RUN}".encode()
    assert guest.ready_line(RUN) == f"container-runner: ready {RUN}".encode()
    assert guest.started_line(TOKEN) == f"container-runner: started {TOKEN}".encode()
    assert guest.ended_line(TOKEN) == f"container-runner: ended {TOKEN} ".encode()
    assert "'container-runner: up %s\\n' \"$0\"" in texts.SEAL
    assert "say ready" in texts.GUEST
    assert "say started" in texts.GUEST
    assert 'printf \'%scontainer-runner: check %s\\n\' "$gap" "$token"' in texts.GUEST
    assert 'printf \'%scontainer-runner: ended %s %s\\n\' "$gap" "$token"' in texts.GUEST
