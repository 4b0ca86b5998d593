"""The fixture `fake_engine`: what it plays, what it records, and what it fails."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from pytest_subprocess import FakeProcess
from pytest_subprocess.exceptions import ProcessNotRegisteredError

from container_runner import (
    Agent,
    AssistantMessage,
    ClaudeRuntime,
    CommandRuntime,
    ContainerConfig,
    ContainerRunner,
    ErrorMessage,
    ExecuteOptions,
    Message,
    OutputLine,
    ResultMessage,
    TextBlock,
)
from container_runner.stream.command import run
from container_runner.stream.process import Process
from container_runner.testing import FakeEngine
from container_runner.testing.replies import FAILURES

PAGE = Path(__file__).parent.parent.parent / "docs/how-to/testing.md"
pytest_plugins = ["pytester"]


@pytest.fixture
def runner(tmp_path: Path) -> ContainerRunner:
    return ContainerRunner(ClaudeRuntime(), ContainerConfig(image="my/claude"), tmp_path / "state")


def options(prompt: str = "Hello", **others: Any) -> ExecuteOptions:
    return ExecuteOptions(prompt=prompt, **{"agent": Agent(name="bot"), **others})


async def all_of(runner: ContainerRunner, options: ExecuteOptions) -> list[Message]:
    return [message async for message in runner.execute(options)]


def open_fds() -> int:
    return len(list(Path("/dev/fd").iterdir()))


# Whole runs


async def test_a_reply_is_a_whole_successful_run(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.strict = True
    fake_engine.reply("It is 4.")

    *_, last = await all_of(runner, options("2 + 2?"))

    assert isinstance(last, ResultMessage)
    assert (last.result, last.is_error) == ("It is 4.", False)
    assert fake_engine.stdin == b"2 + 2?"
    assert fake_engine.run_argv[:4] == ("docker", "run", "--rm", "--interactive")
    assert fake_engine.run_argv == fake_engine.agent_argv
    assert fake_engine.agent_argv[-4:-1] == ("-p", "--output-format=stream-json", "--verbose")
    verbs = [call.argv[1] for call in fake_engine.calls]
    assert (verbs[0], verbs.count("run"), {*verbs} & {"exec", "rm"}) == ("--version", 1, set())


async def test_prepared_runs_are_used_in_their_order(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.reply("one")
    fake_engine.reply("two")

    results = [(await all_of(runner, options(prompt)))[-1] for prompt in ("1", "2")]

    assert [result.result for result in results if isinstance(result, ResultMessage)] == ["one", "two"]


async def test_a_prompt_and_an_output_larger_than_a_pipe_arrive_whole(
    fake_engine: FakeEngine, runner: ContainerRunner
) -> None:
    big = "x" * 3_000_000
    fake_engine.reply(big)

    *_, last = await all_of(runner, options(big))

    assert isinstance(last, ResultMessage)
    assert last.result == big
    assert fake_engine.stdin == big.encode()


async def test_a_failing_agent_is_an_agent_failure(fake_engine: FakeEngine, tmp_path: Path) -> None:
    runner = ContainerRunner(CommandRuntime(["agent"]), ContainerConfig(image="i"), tmp_path)
    fake_engine.messages(["plain text", b"\xff"], exit_code=3, stderr="it broke")

    first, second, last = await all_of(runner, options())

    assert isinstance(first, OutputLine)
    assert isinstance(second, OutputLine)
    assert isinstance(last, ErrorMessage)
    assert (last.kind, last.exit_code, last.stderr.strip()) == ("agent_failed", 3, "it broke")


async def test_an_agent_that_hangs_is_stopped_by_its_lease(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.messages([{"type": "system", "subtype": "init"}], hang=True)

    *_, last = await all_of(runner, options(timeout=2))  # it has begun by then, on a busy machine too

    assert isinstance(last, ErrorMessage)
    assert last.kind == "total_timeout"
    assert last.stop == "term"
    ended = next(call for call in fake_engine.calls if call.argv == fake_engine.agent_argv)
    assert ended.returncode == 0  # our script's, which has told the agent's own


async def test_a_reader_that_leaves_early_ends_the_run(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.messages([{"type": "n", "n": n, "padding": "x" * 1000} for n in range(2000)])

    messages = runner.execute(options())
    async for _ in messages:
        break
    await messages.aclose()

    ended = next(call for call in fake_engine.calls if call.argv == fake_engine.agent_argv)
    assert ended.returncode == 0


async def test_a_persistent_agent_can_be_played(fake_engine: FakeEngine, tmp_path: Path) -> None:
    config = ContainerConfig(image="i", ephemeral=False)
    fake_engine.reply("Kept.")

    *_, last = await all_of(ContainerRunner(ClaudeRuntime(), config, tmp_path), options())

    assert isinstance(last, ResultMessage)
    assert fake_engine.run_argv[:3] == ("docker", "run", "--detach")
    assert fake_engine.agent_argv[:3] == ("docker", "exec", "--interactive")
    assert fake_engine.stdin == b"Hello"


async def test_an_agent_whose_lease_ends_before_it_got_its_prompt_never_starts(
    fake_engine: FakeEngine, runner: ContainerRunner
) -> None:
    plan = runner.plan(options())
    for stdin in (b"", plan.stdin()[:100], plan.stdin()[:-1]):
        fake_engine.reply("never said")

        done = await run(plan.run, stdin=stdin, timeout=10)

        assert (done.returncode, done.stdout, done.stderr) == (70, b"", "")


@pytest.mark.parametrize("engine", ["docker", "podman", "auto"])
async def test_every_engine_can_be_played(fake_engine: FakeEngine, tmp_path: Path, engine: str) -> None:
    config = ContainerConfig(image="i", engine=engine)
    fake_engine.reply("Hello.")

    *_, last = await all_of(ContainerRunner(ClaudeRuntime(), config, tmp_path), options())

    assert isinstance(last, ResultMessage)
    assert fake_engine.run_argv[0] == ("docker" if engine == "auto" else engine)
    assert ("--http-proxy=false" in fake_engine.run_argv) is (engine == "podman")


async def test_an_agent_without_a_container_can_be_played(fake_engine: FakeEngine, fp: FakeProcess) -> None:
    fp.register(["my-agent", "--fast"], stdout=["hello"])

    messages = [message async for message in CommandRuntime(["my-agent", "--fast"]).execute(options("prompt"))]

    assert [message.text for message in messages if isinstance(message, OutputLine)] == ["hello"]
    assert fake_engine.calls[0].stdin == b"prompt"


async def test_secrets_are_among_the_variables_and_not_in_a_calls_repr(
    fake_engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "s3cr3t")
    runner = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="i", secrets=("TOKEN",)), tmp_path)
    fake_engine.reply("Hello.")

    await all_of(runner, options())

    assert fake_engine.variables == {"TOKEN": "s3cr3t"}
    assert not [call for call in fake_engine.calls if "s3cr3t" in " ".join((*call.argv, *call.env.values()))]
    assert "s3cr3t" not in repr(fake_engine.calls)


# Which run gets which reply


async def test_at_the_same_time_each_prompt_gets_its_own_reply(
    fake_engine: FakeEngine, runner: ContainerRunner
) -> None:
    for n in range(6):
        fake_engine.reply(f"answer {n}", prompt=f"question {n}")
    said: dict[int, str] = {}

    async def ask(n: int) -> None:
        last = (await all_of(runner, options(f"question {n}")))[-1]
        assert isinstance(last, ResultMessage)
        said[n] = last.result

    async with anyio.create_task_group() as tasks:
        for n in reversed(range(6)):
            tasks.start_soon(ask, n)

    assert said == {n: f"answer {n}" for n in range(6)}


async def test_a_reply_of_its_own_goes_before_one_for_anybody(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.reply("anybody")
    fake_engine.reply("a pattern", prompt=re.compile("two$"))
    fake_engine.reply("a function", prompt=lambda prompt: len(prompt) > 20)
    fake_engine.reply("an agent", agent="other")
    asked = [options("number two"), options("a prompt of many characters"), options("x", agent=Agent(name="other"))]

    results = [(await all_of(runner, each))[-1] for each in (*asked, options("x"))]

    said = [result.result for result in results if isinstance(result, ResultMessage)]
    assert said == ["a pattern", "a function", "an agent", "anybody"]


@pytest.mark.parametrize("ephemeral", [True, False])
async def test_a_reply_may_be_made_of_the_prompt(fake_engine: FakeEngine, tmp_path: Path, ephemeral: bool) -> None:
    fake_engine.strict = True
    fake_engine.reply(str.upper, agent="bot", times=2)
    runner = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="i", ephemeral=ephemeral), tmp_path)

    results = [(await all_of(runner, options(prompt)))[-1] for prompt in ("one", "two")]

    assert [result.result for result in results if isinstance(result, ResultMessage)] == ["ONE", "TWO"]


async def test_a_reply_has_cost_and_usage_and_a_shape(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    usage = {"input_tokens": 10, "output_tokens": 3}
    fake_engine.reply("4", cost_usd=0.25, usage=usage, structured_output={"sum": 4}, session_id="abc")

    *_, last = await all_of(runner, options())

    assert isinstance(last, ResultMessage)
    assert last.usage is not None
    assert (last.total_cost_usd, last.usage.total, last.session_id) == (0.25, 13, "abc")
    assert last.structured_output == {"sum": 4}


async def test_a_reply_may_be_an_error_of_claudes(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.reply("I began.", error="The API is down.", cost_usd=0.5)

    *_, result, last = await all_of(runner, options())

    assert isinstance(result, ResultMessage)
    assert (result.is_error, result.total_cost_usd) == (True, 0.5)
    assert isinstance(last, ErrorMessage)
    assert (last.kind, last.message) == ("agent_failed", "claude failed: The API is down.")


async def test_messages_may_be_messages(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    given = AssistantMessage(content=[TextBlock("Hello.")])
    fake_engine.messages([given, ResultMessage(subtype="success", is_error=False, result="Hello.")])

    first, last = await all_of(runner, options())

    assert first == given
    assert isinstance(last, ResultMessage)


@pytest.mark.parametrize("kind", FAILURES)
async def test_every_failure_that_can_be_played_is_of_its_kind(
    fake_engine: FakeEngine, runner: ContainerRunner, kind: str
) -> None:
    fake_engine.strict = True
    fake_engine.fail(kind, prompt="Hello")

    *_, last = await all_of(runner, options())  # a check fails behind an agent that has spoken

    assert isinstance(last, ErrorMessage)
    assert (last.kind, "{" in last.stderr) == (kind, False)


def test_a_failure_that_is_none_is_refused(fake_engine: FakeEngine) -> None:
    with pytest.raises(ValueError, match="'no_such_kind' is no failure that can be played; these can: agent_failed,"):
        fake_engine.fail("no_such_kind")


# What `fp` can do


async def test_what_fp_registered_is_what_run_returns(fake_engine: FakeEngine, fp: FakeProcess) -> None:
    fp.register(["docker", "ps", fp.any()], stdout=["one", "two"], stderr="a warning", returncode=3)

    done = await run(["docker", "ps", "--all"], timeout=10)

    assert (done.stdout, done.stderr, done.returncode) == (b"one\ntwo", "a warning", 3)
    assert list(fp.calls) == [["docker", "ps", "--all"]]


async def test_fp_answers_to_stdin(fake_engine: FakeEngine, fp: FakeProcess) -> None:
    fp.register(["cat"], stdout="before\n", stdin_callable=lambda given: {"stdout": given.upper()})

    done = await run(["cat"], timeout=10, stdin=b"hello\n")

    assert done.stdout == b"before\nHELLO"


async def test_fp_calls_back(fake_engine: FakeEngine, fp: FakeProcess) -> None:
    seen = []

    def callback(process: object) -> None:
        seen.append(process)
        process.returncode = 7  # type: ignore[attr-defined]  # the plugin gives it no type

    fp.register(["agent"], callback=callback)

    assert (await run(["agent"], timeout=10)).returncode == 7
    assert len(seen) == 1


async def test_output_comes_before_the_end_of_a_slow_command(fake_engine: FakeEngine, fp: FakeProcess) -> None:
    fp.register(["slow"], stdout=["early"], wait=0.3)
    process = await Process.start(["slow"])

    assert await process.read(timeout=10) == [b"early"]
    assert process.returncode is None
    assert await process.wait() == 0
    process.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_signal_ends_a_command_and_fp_hears_of_it(
    fake_engine: FakeEngine, fp: FakeProcess, number: signal.Signals
) -> None:
    recorder = fp.register(["slow"], wait=0.5)
    process = await Process.start(["slow"])
    (process._process.terminate if number == signal.SIGTERM else process._process.kill)()

    assert await process.wait() == -number
    assert recorder.first_call is not None
    assert recorder.first_call.received_signals() == (number,)
    process.close()


async def test_a_real_process_may_pass(fake_engine: FakeEngine, fp: FakeProcess) -> None:
    command = [sys.executable, "-c", "import sys; print(sys.stdin.read()); sys.exit(5)"]
    fp.pass_command(command)

    done = await run(command, timeout=30, stdin=b"real")

    assert (done.stdout, done.returncode) == (b"real", 5)


async def test_no_fake_pid_is_anybodys(fake_engine: FakeEngine, fp: FakeProcess) -> None:
    fp.register(["agent"])
    process = await Process.start(["agent"])

    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    await process.wait()
    process.close()


async def test_nothing_is_left_open(fake_engine: FakeEngine, runner: ContainerRunner) -> None:
    fake_engine.reply("warm up")
    await all_of(runner, options())
    before = open_fds()
    for _ in range(5):
        fake_engine.reply("again")
        await all_of(runner, options())

    fake_engine.close()

    assert open_fds() == before
    assert not [thread for thread in threading.enumerate() if "_play" in thread.name]


def test_asking_for_a_command_that_did_not_run_says_so(fake_engine: FakeEngine) -> None:
    with pytest.raises(AssertionError, match="No `run` was run"):
        _ = fake_engine.run_argv


# What fails a test, seen from outside


CALL = """
import anyio
from container_runner.stream.command import run

async def call(*argv):
    return (await run(list(argv), timeout=10)).returncode
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    # Without xdist, for which rerunfailures starts a thread of its own: threads are counted here.
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider -p no:xdist\nfilterwarnings = error\n")
    pytester.makepyfile(call=CALL)
    return pytester


def outcomes(project: pytest.Pytester, body: str) -> tuple[dict[str, int], str]:
    project.makepyfile(test_it=body)
    result = project.runpytest_subprocess("-q")
    return result.parseoutcomes(), result.stdout.str()


def test_an_unregistered_command_fails_the_test_also_if_it_was_caught(project: pytest.Pytester) -> None:
    found, text = outcomes(
        project,
        """
        import anyio
        from call import call

        def test_it(fake_engine):
            try:
                anyio.run(call, "docker", "rm", "x")
            except Exception:
                pass
        """,
    )

    assert found == {"passed": 1, "errors": 1}
    assert "docker rm x" in text


def test_an_unregistered_command_of_a_run_never_becomes_an_error_message(
    fp: FakeProcess, tmp_path: Path, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(fp)
    monkeypatch.setattr("container_runner.stream.process.open_process", engine.open_process)
    runner = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="i", engine="docker"), tmp_path)

    with pytest.raises(ProcessNotRegisteredError):
        anyio.run(all_of, runner, options(), backend=anyio_backend)
    with pytest.raises(pytest.fail.Exception, match="nobody registered:\ndocker --version"):
        engine.close()


async def test_a_run_that_nobody_prepared_is_told_in_a_few_words(
    fp: FakeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(fp)
    monkeypatch.setattr("container_runner.stream.process.open_process", engine.open_process)
    runner = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="i", engine="docker"), tmp_path)
    engine.reply("Once.")
    await all_of(runner, options())

    with pytest.raises(ProcessNotRegisteredError) as caught:
        await all_of(runner, options("a second one"))

    assert str(caught.value) == (
        "docker run … claude -p --output-format=stream-json --verbose --dangerously-skip-permissions\n"
        "  a run of agent 'bot'; prepare it with reply, messages, transcript or fail"
    )
    with pytest.raises(pytest.fail.Exception) as failed:
        engine.close()
    assert len(str(failed.value)) < 300


async def test_a_run_for_which_no_reply_is_left_names_its_prompt(
    fp: FakeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(fp)
    monkeypatch.setattr("container_runner.stream.process.open_process", engine.open_process)
    runner = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="i", engine="docker"), tmp_path)
    engine.reply("never said", prompt="another")

    told = "No reply that is left is for the prompt 'Hello' of agent 'bot'."
    with pytest.raises(ProcessNotRegisteredError, match=told):
        await all_of(runner, options())
    with pytest.raises(ProcessNotRegisteredError, match=told):
        engine.close()


def test_what_was_prepared_and_never_ran_fails_a_strict_test_only(project: pytest.Pytester) -> None:
    found, text = outcomes(
        project,
        """
        import pytest

        @pytest.mark.parametrize("strict", [True, False])
        def test_a_command(fake_engine, fp, strict):
            fake_engine.strict = strict
            fp.register(["docker", "ps"])

        @pytest.mark.parametrize("strict", [True, False])
        def test_a_run(fake_engine, strict):
            fake_engine.strict = strict
            fake_engine.reply("x")
        """,
    )

    assert found == {"passed": 4, "errors": 2}
    assert "registered that nobody ran:\ndocker ps" in text
    assert "registered that nobody ran:\nENGINE RUN ATTACHED ATTACHED" in text


def test_an_error_in_a_callback_fails_the_test(project: pytest.Pytester) -> None:
    found, text = outcomes(
        project,
        """
        import anyio
        from call import call

        def refuse(process):
            raise ValueError("not like this")

        def test_it(fake_engine, fp):
            fp.register(["agent"], callback=refuse)
            anyio.run(call, "agent")
        """,
    )

    assert found["failed"] == 1
    assert "not like this" in text


def test_a_process_that_a_test_forgot_ends_with_it(project: pytest.Pytester) -> None:
    found, _ = outcomes(
        project,
        """
        import anyio, os, threading
        from container_runner.stream.process import Process

        async def forget():
            (await Process.start(["cat"], hold_stdin=True)).close

        def test_it(fake_engine, fp):
            fp.register(["cat"], stdout="x" * 1_000_000)
            anyio.run(forget)

        def test_after():
            assert threading.active_count() == 1
        """,
    )

    assert found == {"passed": 2}


def test_the_plugin_loads_without_pytest_subprocess_and_the_fixture_names_the_extra(project: pytest.Pytester) -> None:
    project.makepyfile(pytest_subprocess="raise ImportError('not here')")
    project.makepyfile(
        test_it="""
        def test_without(): pass
        def test_with(fake_engine): pass
        """
    )
    result = project.runpytest_subprocess("-q", "-p", "no:pytest-subprocess", "-p", "no:pytest_subprocess")

    assert result.parseoutcomes() == {"passed": 1, "errors": 1}
    result.stdout.fnmatch_lines(["*needs pytest-subprocess: pip install 'agent-container-runner[[]testing]'*"])


# The page


def test_the_examples_of_the_page_run(project: pytest.Pytester) -> None:
    blocks = re.findall(r"```python\n# file: (\w+)\.py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == PAGE.read_text().count("```python")
    for name, code in blocks:
        (project.path / f"{name}.py").write_text(code)

    result = project.runpytest_subprocess("-q", *(f"{name}.py" for name, _ in blocks if name.startswith("test_")))

    result.assert_outcomes(passed=sum(code.count("def test_") for _, code in blocks) + 1)  # one runs on two loops


@pytest.mark.anyio
async def test_a_pool_is_played_too(fake_engine: FakeEngine, tmp_path: Path) -> None:
    for text in ("one", "two"):
        fake_engine.reply(text)
    runner = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="my/claude", pool=1), tmp_path / "state")
    agent = Agent(name="bot")

    said = []
    async with runner.warm(agent) as pool:
        for _ in range(2):
            with anyio.fail_after(10):
                while not len(pool):
                    await anyio.sleep(0.01)
            said += [str(message) async for message in runner.execute(ExecuteOptions(prompt="x", agent=agent))]
            assert fake_engine.stdin == b"x"

    assert [text for text in ("one", "two") if any(text in line for line in said)] == ["one", "two"]
    assert not [call for call in fake_engine.calls if call.argv[1] == "exec"]
