"""`ps`, `stop`, `prune`, `shell` and `image build` with real engines."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time

from tests.integration.engines import OWN, wait_until
from tests.integration.runs import COMMAND, ON_DOCKER, ON_OWN_ROOTFUL, Box, on

pytestmark = on(*OWN)  # what is ours, whatever the engine's age

WAIT = 60
"""Seconds after which a command hangs."""


def command(box: Box, *words: str, stdin: str = "", environ: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run a command on the box's engine and state folder: its exit code, stdout and stderr."""
    flags = [f"--engine={box.engine.binary}", *([] if words[0] == "image" else [f"--state-dir={box.state}"])]
    done = subprocess.run(
        [COMMAND, *words, *flags] if "--" not in words else [COMMAND, words[0], *flags, *words[1:]],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
        env={**os.environ, **(environ or {})},
    )
    return done.returncode, done.stdout, done.stderr


def listed(box: Box) -> list[dict[str, object]]:
    code, out, err = command(box, "ps", "--json")
    assert code == 0, err
    rows: list[dict[str, object]] = json.loads(out)
    return rows


def test_a_kept_container_is_listed_entered_and_stopped(box: Box) -> None:
    box.run("edit made.txt hello", agent="bot", ephemeral=False)

    (row,) = listed(box)
    assert (row["agent"], row["kind"], row["status"], row["in_use"]) == ("bot", "persistent", "running", False)
    code, out, err = command(
        box, "shell", "bot", "--secret=TOKEN", stdin="id -u; cat made.txt; echo $TOKEN; exit 5\n",
        environ={"TOKEN": "passed on", "ANTHROPIC_API_KEY": "kept back"},
    )  # fmt: skip
    assert (code, out.splitlines()) == (5, [str(box.engine.owner[0]), "hello", "passed on"]), err
    code, out, err = command(box, "shell", "bot", "--", "sh", "-c", "env")
    assert "CLAUDE_CONFIG_DIR=/container-runner/sessions" in out
    assert "ANTHROPIC_API_KEY" not in out

    assert command(box, "stop", "bot")[:2] == (0, f"{row['name']}\n")
    assert listed(box) == []
    assert box.containers() == []
    code, _, err = command(box, "shell", "bot")
    assert code == 6
    assert "--no-ephemeral --agent=bot" in err


def test_a_shell_at_a_terminal_is_one_and_holds_the_container(box: Box) -> None:
    box.run("hello", agent="bot", ephemeral=False)
    ours, theirs = pty.openpty()
    words = [COMMAND, "shell", "bot", f"--engine={box.engine.binary}", f"--state-dir={box.state}"]
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as shell:
        os.close(theirs)
        try:
            os.write(ours, b"tty && echo in-$((1 + 1))\n")
            assert "in-2" in read_until(ours, "in-2")
            assert listed(box)[0]["in_use"] is True
            os.write(ours, b"exit 3\n")
            read_until(ours, "never said", seconds=2)
            assert shell.wait(WAIT) == 3
        finally:
            shell.kill()
            os.close(ours)
    assert listed(box)[0]["in_use"] is False
    command(box, "stop", "--all")


def read_until(fd: int, word: str, seconds: float = WAIT) -> str:
    """What comes from a terminal, until a word or the end."""
    said = ""
    end = time.monotonic() + seconds
    while word not in said and time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                said += os.read(fd, 65536).decode(errors="replace")
            except OSError:
                break
    return said


@ON_OWN_ROOTFUL
def test_a_run_at_work_is_listed_as_in_use_and_survives_prune(box: Box) -> None:
    with box.cli("run", "sleep 60", "--agent=busy") as process:
        wait_until(lambda: any(row["status"] == "running" for row in listed(box)), seconds=WAIT)

        (row,) = listed(box)
        code, out, _ = command(box, "prune", "--json")
        assert (row["kind"], row["owner"], row["in_use"]) == ("ephemeral", "alive", True)
        assert code == 0
        assert row["name"] not in [pruned["name"] for pruned in json.loads(out)]
        assert [row["name"] for row in listed(box)] == [row["name"]]

        assert command(box, "stop", str(row["name"]))[0] == 0
        assert process.wait(WAIT) != 0
    assert box.containers() == []


@ON_OWN_ROOTFUL
def test_prune_removes_a_kept_container_that_has_ended_and_says_why(box: Box) -> None:
    box.run("hello", agent="bot", ephemeral=False)
    (row,) = listed(box)
    box.engine.run("kill", str(row["id"]))
    wait_until(lambda: listed(box)[0]["status"] == "exited", seconds=WAIT)

    _, dry, _ = command(box, "prune", "--dry-run")
    assert f"would remove {row['name']}: it is exited" in dry
    assert len(listed(box)) == 1
    code, out, _ = command(box, "prune")
    assert code == 0
    assert f"removed {row['name']}" in out
    assert listed(box) == []


def test_an_image_is_built_on_a_base_of_this_machine(box: Box) -> None:
    # `tiny` has neither apt nor npm: it gets stand-ins for what the Containerfile calls.
    base, tag = "container-runner-test/base", "container-runner-test/built"
    steps = f"""\
FROM {box.engine.images.tiny}
RUN rm /usr/local/bin/claude \\
 && echo 'echo " installed"' >/bin/dpkg-query \\
 && echo 'for p; do :; done; printf "%s\\n" "#!/bin/sh" "echo $p" >/bin/claude; chmod 755 /bin/claude' >/bin/npm \\
 && sed -i '1i #!/bin/sh' /bin/dpkg-query /bin/npm \\
 && chmod 755 /bin/dpkg-query /bin/npm
"""
    made = subprocess.run(
        [box.engine.binary, "build", f"--tag={base}", "-"], input=steps, text=True, capture_output=True, check=False
    )
    assert made.returncode == 0, made.stderr
    try:
        code, out, err = command(
            box, "image", "build", f"--base={base}", f"--tag={tag}", "--agent-version=1.2", "--json"
        )
        assert code == 0, err
        answer = json.loads(out)
        assert (answer["image"], answer["version"]) == (tag, "@anthropic-ai/claude-code@1.2")
        assert "AGENT_VERSION" in err, "the steps are shown"
        user = box.engine.run("image", "inspect", "--format={{.Config.User}}", tag).stdout.strip()
        assert user == "1000:1000"
    finally:
        for image in (tag, base):
            box.engine.run("rmi", "--force", image, check=False)


@ON_DOCKER
def test_without_a_registry_the_way_around_is_said(box: Box) -> None:
    code, _, err = command(box, "image", "build", "--base=registry.invalid/node", "--tag=container-runner-test/none")

    assert code == 4
    assert "--from-scratch" in err
