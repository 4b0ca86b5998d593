"""How each agent is started, and how its end is judged."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_runner.agents import ClaudeRuntime, Command, CommandRuntime, Describes, PythonRuntime, Runtime
from container_runner.config.container import ContainerConfig
from container_runner.errors import (
    AgentFailedError,
    AuthenticationError,
    ConfigError,
    ContainerRunnerError,
    IncompleteOutputError,
    PromptRefusedError,
    SessionNotFoundError,
    UnsupportedRuntimeError,
)
from container_runner.options import Agent, ExecuteOptions
from container_runner.runner import ContainerRunner
from container_runner.stream.messages import (
    ErrorMessage,
    Message,
    OutputLine,
    ResultMessage,
    SystemMessage,
    UnknownMessage,
)
from container_runner.testing import FakeEngine

HEAD = ("claude", "-p", "--output-format=stream-json", "--verbose")


def options(prompt: str = "Hello", agent: dict[str, Any] | None = None, **others: Any) -> ExecuteOptions:
    return ExecuteOptions(prompt=prompt, agent=Agent(**{"name": "bot", **(agent or {})}), **others)


def flags(*, contained: bool = True, agent: dict[str, Any] | None = None, **others: Any) -> list[str]:
    """What follows the words that every claude command begins with."""
    argv = ClaudeRuntime().command(options(agent=agent, **others), contained=contained).argv
    assert argv[:4] == HEAD
    return list(argv[4:])


# claude


def test_in_a_container_claude_does_not_ask_and_on_the_host_it_does() -> None:
    assert flags() == ["--dangerously-skip-permissions"]
    assert flags(contained=False) == []
    assert flags(agent={"permission_mode": "plan"}) == ["--permission-mode=plan"]
    assert flags(contained=False, agent={"permission_mode": "plan"}) == ["--permission-mode=plan"]


@pytest.mark.parametrize(
    ("agent", "others", "flag"),
    [
        ({"model": "opus"}, {}, "--model=opus"),
        ({"system_prompt": "-x"}, {}, "--system-prompt=-x"),
        ({}, {"append_system_prompt": "Be brief."}, "--append-system-prompt=Be brief."),
        ({"allowed_tools": ["Read", "Bash(git log:*)"]}, {}, "--allowedTools=Read,Bash(git log:*)"),
        ({"disallowed_tools": "Write"}, {}, "--disallowedTools=Write"),
        ({"tools": ["Read", "Edit"]}, {}, "--tools=Read,Edit"),
        ({"tools": []}, {}, "--tools="),
        ({"setting_sources": ["user", "project"]}, {}, "--setting-sources=user,project"),
        ({"setting_sources": []}, {}, "--setting-sources="),
        ({"max_turns": 3}, {}, "--max-turns=3"),
        ({"fallback_model": "sonnet"}, {}, "--fallback-model=sonnet"),
        ({"effort": "high"}, {}, "--effort=high"),
        ({}, {"max_budget_usd": 0.5}, "--max-budget-usd=0.5"),
        ({}, {"json_schema": {"type": "object"}}, '--json-schema={"type": "object"}'),
        ({}, {"include_partial_messages": True}, "--include-partial-messages"),
        ({}, {"resume": "abc"}, "--resume=abc"),
        ({}, {"session_id": "abc"}, "--session-id=abc"),
        ({"args": ["--betas=x"]}, {}, "--betas=x"),
    ],
)
def test_each_option_is_one_word(agent: dict[str, Any], others: dict[str, Any], flag: str) -> None:
    assert flags(agent=agent, **others) == ["--dangerously-skip-permissions", flag]


def test_the_other_options() -> None:
    assert flags(agent={"tools": None, "setting_sources": None, "allowed_tools": [], "disallowed_tools": []})[1:] == []
    assert flags(agent={"plugin_dirs": ["/a", "/b"]})[1:] == ["--plugin-dir=/a", "--plugin-dir=/b"]
    assert flags(resume="abc", fork=True)[1:] == ["--resume=abc", "--fork-session"]


def test_mcp_servers_stand_below_their_key() -> None:
    (flag,) = flags(agent={"mcp_servers": {"db": {"command": "x", "env": {"TOKEN": "${TOKEN}"}}}})[1:]

    name, _, value = flag.partition("=")
    assert name == "--mcp-config"
    assert json.loads(value) == {"mcpServers": {"db": {"command": "x", "env": {"TOKEN": "${TOKEN}"}}}}


def test_too_many_tools_for_one_argument_are_refused() -> None:
    with pytest.raises(ConfigError):
        flags(agent={"allowed_tools": ["x" * 100_000, "y" * 100_000]})


def test_all_of_claudes_state_is_in_the_sessions_folder_and_only_in_a_container() -> None:
    contained = ClaudeRuntime().command(options(), contained=True)

    assert contained.env["CLAUDE_CONFIG_DIR"] == "/container-runner/sessions"
    assert contained.credentials.names == ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN")
    assert contained.credentials.target == "/container-runner/sessions/.credentials.json"
    assert ClaudeRuntime().command(options(), contained=False).env == {}


def test_another_program_in_claudes_place() -> None:
    assert ClaudeRuntime("/opt/claude").command(options(), contained=True).argv[0] == "/opt/claude"
    with pytest.raises(ConfigError):
        ClaudeRuntime("")


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_the_prompt_is_on_stdin_and_only_there(prompt: str) -> None:
    for runtime in (ClaudeRuntime(), CommandRuntime(["agent"])):
        command = runtime.command(options(prompt), contained=True)

        assert command.stdin == prompt.encode()
        assert len(command.argv) <= 5
        assert command.argv == runtime.command(options(""), contained=True).argv


ARGUMENT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1)
KNOWN = {
    *("-p", "--output-format=stream-json", "--verbose", "--dangerously-skip-permissions"),
    *("--include-partial-messages", "--fork-session"),
}
VALUED = {
    *("--model", "--system-prompt", "--append-system-prompt", "--allowedTools", "--disallowedTools", "--tools"),
    *("--setting-sources", "--plugin-dir", "--mcp-config"),
}


@given(text=ARGUMENT, words=st.lists(ARGUMENT, max_size=3), servers=st.dictionaries(ARGUMENT, ARGUMENT, max_size=2))
def test_no_value_can_become_a_flag(text: str, words: list[str], servers: dict[str, str]) -> None:
    agent = {
        "model": text,
        "system_prompt": text,
        "allowed_tools": words,
        "disallowed_tools": words,
        "tools": words,
        "setting_sources": words,
        "plugin_dirs": words,
        "mcp_servers": servers,
    }
    for flag in flags(agent=agent, append_system_prompt=text):
        assert flag in KNOWN or flag.partition("=")[0] in VALUED


def result(**fields: Any) -> ResultMessage:
    return ResultMessage(**{"subtype": "success", "is_error": False, "result": "ok", **fields})


@pytest.mark.parametrize(
    ("message", "code", "kind"),
    [
        (result(), 0, None),
        (None, 0, IncompleteOutputError),
        (None, 1, AgentFailedError),
        (result(), 1, AgentFailedError),
        (result(is_error=True), 0, AgentFailedError),
        (result(is_error=True, subtype="error_max_turns"), 1, AgentFailedError),
        (result(is_error=True, terminal_reason="prompt_too_long"), 1, PromptRefusedError),
    ],
)
def test_success_needs_a_result_that_is_no_error_and_exit_code_0(
    message: ResultMessage | None, code: int, kind: type[ContainerRunnerError] | None
) -> None:
    error = ClaudeRuntime().outcome(message, code, "stderr")

    assert (error and type(error)) is kind
    assert error is None or (error.exit_code, error.stderr) == (code, "stderr")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("Invalid API key · Fix external API key", None),
        ("Not logged in · Please run /login", None),
        ("Failed to authenticate. API Error: 401", 401),
    ],
)
def test_what_claude_says_of_its_login_is_answered_for_one_in_a_container(said: str, status: int | None) -> None:
    error = ClaudeRuntime().outcome(result(is_error=True, result=said, api_error_status=status), 1, "")

    assert isinstance(error, AuthenticationError)
    assert "ANTHROPIC_API_KEY" in error.next_step


def test_a_session_that_is_not_there_is_an_error_of_its_own() -> None:
    said = ["No conversation found with session ID: 00000000-0000-4000-8000-000000000000"]

    error = ClaudeRuntime().outcome(result(is_error=True, errors=said), 1, said[0])
    no_id = ClaudeRuntime().outcome(None, 1, "Error: --resume requires a valid session ID or session title")

    assert isinstance(no_id, SessionNotFoundError)
    assert isinstance(error, SessionNotFoundError)
    assert error.message == f"{said[0]}."
    assert error.stderr == "", "it is the same once more"
    assert "sessions list" in error.next_step


def test_what_claude_said_is_in_the_error_and_not_without_end() -> None:
    error = ClaudeRuntime().outcome(result(is_error=True, result="x" * 10_000), 1, "")

    assert error is not None
    assert len(error.message) < 600


# Any command


def test_a_command_runs_as_it_was_given_with_the_agents_arguments_after_it() -> None:
    runtime = CommandRuntime(["agent", "--fast", ""])

    command = runtime.command(options(agent={"args": ["-x"]}), contained=True)

    assert command.argv == ("agent", "--fast", "", "-x")
    assert (command.env, command.credentials.names) == ({}, ())


@pytest.mark.parametrize(
    "argv", [[], [""], ["-c", "x"], ["a", "b\0"], ["a", "x" * 200_000], ["a", 1], ["\ud800"], "", "a 'b", 7]
)
def test_a_command_that_is_refused(argv: list[Any]) -> None:
    with pytest.raises(ConfigError):
        CommandRuntime(argv)


@pytest.mark.parametrize(("code", "fails"), [(0, False), (1, True), (137, True), (-9, True)])
def test_a_command_succeeds_with_exit_code_0(code: int, fails: bool) -> None:
    assert (CommandRuntime("agent").outcome(None, code, "") is not None) is fails


@pytest.mark.parametrize(
    ("said", "fails"),
    [({"is_error": True}, True), ({"is_error": False}, False), ({"subtype": "success"}, False), ({}, False)],
)
def test_a_command_that_says_that_it_failed_has_failed(said: dict[str, Any], fails: bool) -> None:
    """A script around claude may exit with 0 though claude failed."""
    line = CommandRuntime("agent").parse_line(json.dumps({"type": "result", **said}).encode())

    assert isinstance(line, ResultMessage)
    assert (CommandRuntime("agent").outcome(line, 0, "") is not None) is fails


def test_a_commands_lines_need_not_be_json() -> None:
    line = CommandRuntime("agent").parse_line(b"plain text")

    assert isinstance(line, OutputLine)
    assert CommandRuntime("agent").parse_line(b"  ") is None


# Runtimes among each other


def test_every_runtime_and_the_runner_itself_is_one() -> None:
    runner = ContainerRunner(ClaudeRuntime(), ContainerConfig(image="i"))

    for runtime in (ClaudeRuntime(), CommandRuntime("agent"), runner):
        assert isinstance(runtime, Runtime)


class Duck:
    """A runtime of somebody's who has no base class of ours."""

    def command(self, options: ExecuteOptions, *, contained: bool) -> Command:
        return Command(argv=("duck", f"--contained={contained}"), stdin=options.prompt.encode())


class Judging(Duck):
    """One that also reads its lines, and judges how it ended."""

    def parse_line(self, line: bytes) -> Message | None:
        return UnknownMessage() if line == b"quack" else None

    def outcome(self, result: ResultMessage | None, exit_code: int, stderr: str) -> ContainerRunnerError | None:
        return None if exit_code == 3 else AgentFailedError("It was not 3.")


async def all_of(runtime: Runtime | Describes, folder: Path) -> list[Message]:
    runner = ContainerRunner(runtime, ContainerConfig(image="i"), folder)
    return [message async for message in runner.execute(options())]


async def test_whatever_describes_its_command_runs_in_a_container(fake_engine: FakeEngine, tmp_path: Path) -> None:
    fake_engine.messages(["one", '{"type": "system", "subtype": "x"}'])

    one, two = await all_of(Duck(), tmp_path)

    assert fake_engine.agent_argv[-2:] == ("duck", "--contained=True")
    assert fake_engine.stdin == b"Hello"
    assert isinstance(one, OutputLine)
    assert isinstance(two, SystemMessage)


@pytest.mark.parametrize(("code", "kinds"), [(3, [UnknownMessage]), (0, [UnknownMessage, ErrorMessage])])
async def test_it_may_read_its_lines_and_judge_its_end(
    fake_engine: FakeEngine, tmp_path: Path, code: int, kinds: list[type]
) -> None:
    fake_engine.messages(["quack", "noise"], exit_code=code)

    assert [type(message) for message in await all_of(Judging(), tmp_path)] == kinds


class Odd(Duck):
    def command(self, options: ExecuteOptions, *, contained: bool) -> Any:
        return ["duck"]


async def test_a_description_that_is_none_says_what_to_return(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Odd\.command\(\) must be a Command, as Command\(argv="):
        await all_of(Odd(), tmp_path)


@pytest.mark.parametrize("argv", ["ls -la", [], [b"ls"], None])
def test_a_command_needs_words(argv: Any) -> None:
    with pytest.raises(ConfigError, match="a list of words"):
        Command(argv=argv)
    assert Command(argv=["ls", "-la"]).argv == ("ls", "-la")


def test_a_text_is_split_as_a_shell_does() -> None:
    assert CommandRuntime("agent --name='a b' /").argv == ("agent", "--name=a b", "/")


class Plain:
    """One that runs its agent itself."""

    async def execute(self, options: ExecuteOptions) -> AsyncIterator[Message]:
        yield UnknownMessage()


def test_a_runtime_that_can_not_describe_its_command_is_made_again_in_the_container() -> None:
    runner = ContainerRunner(Plain(), ContainerConfig(image="i"))

    assert isinstance(runner.runtime, PythonRuntime)
    assert runner.plan(options()).command[-1] == f"{__name__}:Plain"

    class Mended(Plain):
        command = Duck.command

    assert ContainerRunner(Mended(), ContainerConfig(image="i")).plan(options()).command[0] == "duck"


def test_one_that_the_container_can_not_import_is_told_what_to_add() -> None:
    class Local(Plain):
        pass

    with pytest.raises(UnsupportedRuntimeError) as caught:
        ContainerRunner(Local(), ContainerConfig(image="i"))

    assert caught.value.message == "Local has only `execute`, and a container can not import its class by name."
    assert 'PythonRuntime("package.module:Local")' in caught.value.next_step
    assert "`command`" in caught.value.next_step


BOX = ContainerConfig(image="i")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((ClaudeRuntime, BOX), "an instance, not the class: ClaudeRuntime(...)"),
        ((Duck, BOX), "an instance, not the class: Duck(...)"),
        ((BOX, ClaudeRuntime()), "the runtime first, and then the ContainerConfig"),
        ((ContainerRunner(ClaudeRuntime(), BOX), BOX), "a runtime without a container around it"),
        (("claude", BOX), "a runtime, such as ClaudeRuntime()"),
        ((None, BOX), "a runtime, such as ClaudeRuntime()"),
        ((ClaudeRuntime(), "my/claude"), 'a ContainerConfig, as ContainerConfig(image="my/claude")'),
        ((ClaudeRuntime(), ContainerConfig), 'a ContainerConfig, as ContainerConfig(image="my/claude")'),
        ((ClaudeRuntime(), {"image": "i"}), 'a ContainerConfig, as ContainerConfig(image="my/claude")'),
    ],
)
def test_a_runner_of_other_things_says_what_to_write(given: tuple[Any, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ContainerRunner(*given)

    assert caught.value.allowed == told


@pytest.mark.parametrize("wrong", ["say hi", None, {"prompt": "x"}, ExecuteOptions])
def test_a_run_of_other_things_says_what_to_write(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r'ExecuteOptions\(prompt="\.\.\.", agent=Agent\(name="bot"\)\)'):
        ContainerRunner(ClaudeRuntime(), BOX).execute(wrong)


@pytest.mark.parametrize("step", ["setup", "check"])
def test_without_a_container_there_is_no_step_around_the_agent(step: str) -> None:
    options = ExecuteOptions(prompt="hi", agent=Agent(name="bot"), **{step: "true"})  # type: ignore[arg-type]  # a field

    with pytest.raises(ConfigError, match=f"{step} must be None without a container"):
        CommandRuntime(["cat"]).execute(options)


@pytest.mark.parametrize("exit_code", [126, 127])
def test_an_agent_that_could_not_be_started_by_its_interpreter_is_told_what_to_look_at(exit_code: int) -> None:
    for runtime in (CommandRuntime(["agent"]), ClaudeRuntime()):
        failed = runtime.outcome(None, exit_code, "env: 'node': No such file or directory")

        assert isinstance(failed, AgentFailedError)
        assert "the interpreter in its first line is in the image" in failed.next_step
    other = CommandRuntime(["agent"]).outcome(None, 1, "")
    assert other is not None
    assert "interpreter" not in other.next_step
