"""What the agent writes arrives: all of it, in order, as it was, in bounded memory."""

from __future__ import annotations

import gc
import hashlib

import anyio
import psutil
import pytest

from container_runner import AssistantMessage, CommandRuntime, ErrorMessage, OutputLine, OversizedLine, ResultMessage
from container_runner.stream import stream as stream_module
from tests.integration.engines import OWN
from tests.integration.runs import (
    ON_DOCKER,
    ON_OWN_ROOTFUL,
    Box,
    error_of,
    lines_of,
    messages_of,
    on,
    said,
)

pytestmark = on(*OWN)  # what is ours, whatever the engine's age

MIB = 1024**2

NUMBERED = """\
BEGIN {
  for (i = length(text); i < size; i++) text = text "x"
  content = "[{\\"type\\":\\"text\\",\\"text\\":\\"" text "\\"}]"
  for (i = 0; i < count; i++)
    printf "{\\"type\\":\\"assistant\\",\\"n\\":%d,\\"message\\":{\\"content\\":%s}}\\n", i, content
}
"""


def numbered(count: int, size: int) -> CommandRuntime:
    """An agent with so many messages, numbered from 0, each with a text of so many bytes."""
    return CommandRuntime(["awk", f"-vcount={count}", f"-vsize={size}", NUMBERED])


def shell(script: str) -> CommandRuntime:
    return CommandRuntime(["sh", "-c", script])


def memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


@on(*OWN)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_200000_messages_arrive_in_order_and_in_memory_that_does_not_grow(box: Box) -> None:
    count, size = 200_000, 380
    before, most, received, expected = memory(), 0, 0, 0

    async with messages_of(box.runner(numbered(count, size)), box.options("go")) as messages:
        async for message in messages:
            assert isinstance(message, AssistantMessage), message
            assert message.raw["n"] == expected
            expected += 1
            received += len(message.text)
            if expected % 10_000 == 0:
                most = max(most, memory())

    assert expected == count
    assert received == count * size
    assert most - before < 60 * MIB


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_reader_that_is_slow_loses_nothing_and_hoards_nothing(box: Box) -> None:
    count = 100_000
    before, numbers = memory(), []

    async with messages_of(box.runner(numbered(count, 400)), box.options("go")) as messages:
        async for message in messages:
            assert isinstance(message, AssistantMessage)
            numbers.append(message.raw["n"])
            if message.raw["n"] % 20_000 == 0:
                await anyio.sleep(0.3)
                assert memory() - before < 60 * MIB

    assert numbers == [*range(count)]


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("size", "nap", "ephemeral"),
    [(1_550_000, 5, True), (1_550_000, 5, False), (90_000_000, 8, True)],
    ids=["ephemeral", "persistent", "90-mb"],
)
async def test_a_reader_that_sleeps_while_the_agent_ends_loses_nothing(
    box: Box, size: int, nap: int, ephemeral: bool
) -> None:
    """docker throws away what nobody has fetched two seconds after an exec's end; so much is under way then."""
    script = f"echo first; sleep 1; head -c {size} /dev/zero | tr '\\000' x | fold -w 100; echo; echo the end; exit 3"
    lines: list[bytes] = []

    async with messages_of(box.runner(shell(script), ephemeral=ephemeral), box.options("go")) as messages:
        async for message in messages:
            if isinstance(message, OutputLine):
                lines.append(message.data)
            else:
                assert isinstance(message, ErrorMessage)
                assert (message.kind, message.exit_code) == ("agent_failed", 3)
            if len(lines) == 1:
                await anyio.sleep(nap)

    assert sum(line.count(b"x") for line in lines) == size
    assert lines[-1] == b"the end"
    for container in box.containers():
        box.engine.remove(container)


@ON_OWN_ROOTFUL
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_reader_that_is_busy_with_the_result_is_no_agent_that_does_not_leave(box: Box) -> None:
    async with messages_of(box.runner(), box.options("hello", result_timeout=1)) as messages:
        async for message in messages:
            assert not isinstance(message, ErrorMessage), message
            if isinstance(message, ResultMessage):
                await anyio.sleep(3)


@ON_OWN_ROOTFUL
def test_a_line_of_100_mb_arrives_whole_and_the_next_one_after_it(box: Box) -> None:
    size = 100_000_000

    messages = box.run("go", shell(f"head -c {size} /dev/zero | tr '\\000' x; echo; echo next"), line_limit=None)

    first, second = lines_of(messages)
    assert len(first) == size
    assert first.count(b"x") == size
    assert second == b"next"


@ON_OWN_ROOTFUL
def test_a_line_over_the_limit_is_counted_and_the_next_one_is_whole(box: Box) -> None:
    size, before = 100_000_000, memory()

    messages = box.run("go", shell(f"head -c {size} /dev/zero | tr '\\000' x; echo; echo next"), line_limit=MIB)

    long, _ = messages
    assert isinstance(long, OversizedLine)
    assert (long.size, long.head) == (size, b"x" * 4096)
    assert lines_of(messages) == [b"next"]
    assert memory() - before < 60 * MIB


def test_bytes_arrive_as_they_were_written(box: Box) -> None:
    wanted = [b"caf\xc3\xa9", b"\xff\xfe", b"nul\0here", b"crlf", b"a\rb", b"\x1b[31mred", b"no newline"]
    written = b"\n\n".join(wanted).replace(b"crlf", b"crlf\r")
    octal = "".join(f"\\0{byte:03o}" for byte in written)

    assert lines_of(box.run("go", CommandRuntime(["printf", "%b", octal]))) == wanted


@ON_OWN_ROOTFUL
def test_the_last_words_come_also_if_we_look_after_the_agent_just_then(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "CHECK_INTERVAL", 0.3)

    for tenths in range(3, 9):
        assert lines_of(box.run("go", shell(f"sleep 0.{tenths}; echo last words"))) == [b"last words"]


@ON_OWN_ROOTFUL
def test_json_that_is_not_utf8_is_still_a_message(box: Box) -> None:
    line = r'{"type":"assistant","message":{"content":[{"type":"text","text":"caf\351"}]}}\n'

    assert said(box.run("go", CommandRuntime(["printf", line.replace("%", "%%")]))) == ["caf\N{REPLACEMENT CHARACTER}"]


@ON_OWN_ROOTFUL
def test_a_flood_of_1_gb_on_stderr_holds_nothing_up(box: Box) -> None:
    before = memory()

    messages = box.run("go", shell("yes 'a line of stderr' | head -n 60000000 >&2; echo done; exit 4"))

    error = error_of(messages)
    assert error is not None
    assert lines_of(messages) == [b"done"]
    assert error.exit_code == 4
    assert error.stderr.endswith("a line of stderr\n")
    assert len(error.stderr) < MIB
    assert memory() - before < 60 * MIB


@ON_OWN_ROOTFUL
def test_a_prompt_of_5_mb_arrives_whole(box: Box) -> None:
    prompt = "-" + "--help $(id) 'é\n" * 300_000

    messages = box.run(prompt, shell("sha256sum | cut -c-64"))

    assert len(prompt) > 5 * MIB - 500_000
    assert lines_of(messages) == [hashlib.sha256(prompt.encode()).hexdigest().encode()]


@ON_DOCKER
@pytest.mark.parametrize(
    "prompt",
    ["-n", "--help", "", "$(touch /tmp/x); `id` && \"quotes\" 'quotes' \\ * ~ !", "\x1b[2J\x07 \x03\x04", "a\n\nb\n"],
)
def test_a_prompt_is_text_to_no_shell_and_no_parser(box: Box, prompt: str) -> None:
    messages = box.run(prompt, shell("od -An -v -tx1 | tr -d ' \\n'; echo"))

    assert b"".join(lines_of(messages)).decode() == prompt.encode().hex()


@ON_OWN_ROOTFUL
def test_an_agent_that_does_not_read_its_prompt_is_none_the_worse(box: Box) -> None:
    assert lines_of(box.run("x" * 1_000_000, shell("exec <&-; echo done"))) == [b"done"]
