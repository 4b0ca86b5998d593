"""claude-agent-sdk's transport, over a live claude in a container."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from types import AsyncGeneratorType
from typing import Any, Self

import anyio
import attrs
from claude_agent_sdk import (
    ClaudeAgentOptions,
    CLIConnectionError,
    CLIJSONDecodeError,
    CLINotFoundError,
    ProcessError,
    Transport,
    __version__,
)

from container_runner.agents.claude import CREDENTIALS, ClaudeRuntime
from container_runner.box.translator import Translator, in_container
from container_runner.config.container import ContainerConfig
from container_runner.errors import CommandNotFoundError, ConfigError, ContainerRunnerError
from container_runner.options import LINE_LIMIT, Agent, ExecuteOptions
from container_runner.runner.pump import Pump
from container_runner.runner.result import RunResult
from container_runner.runner.runner import ContainerRunner
from container_runner.sdk.fields import check_fields
from container_runner.sdk.flags import make_flags, plugin_paths, servers_of
from container_runner.stream.decode import fits, load
from container_runner.stream.lines import OversizedLine

_log = logging.getLogger(__name__)


class ContainerTransport(Transport):
    """Carries the SDK's lines to a claude in a container, and its lines back. `from_options` makes one.

    What the container has and may do is the runner's configuration; what claude is asked for are the SDK's options.
    """

    def __init__(self, make: Callable[[], Pump]) -> None:
        """Args:
        make: makes a new pump, for each `connect` one.
        """
        self._make = make
        self._pump: Pump | None = None
        self._reader: AsyncGenerator[dict[str, Any], None] | None = None

    @classmethod
    def from_options(
        cls, options: ClaudeAgentOptions, runner: ContainerRunner, *, agent: str = "sdk", **more: Any
    ) -> Self:
        """The transport for *options*, which are to be given to the SDK as well.

        Args:
            runner: which image, and what is in its container. Its runtime is a `ClaudeRuntime`.
            agent: the agent's name, to which its sessions belong.
            more: other fields of `ExecuteOptions`, such as `timeout` and `grace`.

        Raises:
            ConfigError: a field that can not be carried is set, or a value is refused.
        """
        check_fields(options)
        if not isinstance(claude := runner.runtime, ClaudeRuntime):
            raise ConfigError("runner.runtime", claude, "ClaudeRuntime(): the SDK speaks with claude alone")
        runner = runner.evolved(config=_with_variables(runner.config, options.env))
        request = ExecuteOptions(
            prompt="",
            agent=Agent(
                name=agent,
                workspace=Path.cwd() if options.cwd is None else options.cwd,
                add_dirs=tuple(str(path) for path in options.add_dirs),
                model=options.model or None,
                mcp_servers=servers_of(options),
                plugin_dirs=plugin_paths(options),
            ),
            resume=options.resume or None,
            fork=options.fork_session and bool(options.resume),
            session_id=options.session_id or None,
            line_limit=LINE_LIMIT if options.max_buffer_size is None else max(1024, options.max_buffer_size),
            **more,
        )
        taken, _ = in_container(request, runner.config, claude)
        flags = make_flags(options, taken.agent, Translator.of(request.agent, runner.config))
        hear = _hearer(options.stderr)

        def make() -> Pump:
            words = (claude.program, *flags.words)
            return runner.pump(request, argv=words, env=_variables(options), files=flags.files, on_stderr=hear)

        make()  # what is wrong with the configuration is said here
        return cls(make)

    @property
    def result(self) -> RunResult | None:
        """What the session came to, once it has ended: its record, and what came out of a carried workspace."""
        return None if self._pump is None else self._pump.result

    async def connect(self) -> None:
        """Start the container with claude in it.

        Raises:
            CLINotFoundError: the image has no such program.
            CLIConnectionError: it could not be started. The cause is a `ContainerRunnerError`.
        """
        if self._pump is not None and not self._pump.has_ended:
            return
        self._pump = self._make()
        try:
            await self._pump.start()
        except CommandNotFoundError as error:
            raise CLINotFoundError(str(error)) from error
        except ContainerRunnerError as error:
            raise CLIConnectionError(str(error)) from error

    async def write(self, data: str) -> None:
        """Give claude whole lines.

        Raises:
            CLIConnectionError: it is not there, or not any more.
        """
        pump = self._there()
        try:
            pump.send(data.encode("utf-8", "replace"))
        except ContainerRunnerError as error:
            raise CLIConnectionError(str(error)) from error
        if prompt := _prompt(data):
            pump.prompted(prompt)
        await anyio.lowlevel.checkpoint()

    def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        """What claude says, decoded, until it ends.

        Raises:
            ProcessError: it ended with another code than 0.
            CLIJSONDecodeError: a line was no JSON, or longer than `max_buffer_size`, or 16 MiB if that is not set, or
                of more values or levels than any line may have.
            CLIConnectionError: what else ended it. The cause is a `ContainerRunnerError`.
        """
        self._reader = self._read()
        return self._reader

    async def _read(self) -> AsyncGenerator[dict[str, Any], None]:
        pump = self._there()
        broken: CLIJSONDecodeError | None = None
        async for line in pump:
            if broken is not None:
                raise broken
            try:
                message = _decoded(line)
            except CLIJSONDecodeError as error:
                if isinstance(line, OversizedLine) or not fits(line):
                    raise
                broken = error  # of the last line only a part may have come, and that is none
                continue
            if message is not None:
                yield message
        if pump.exit_code:
            said = "Command failed" if pump.error is None else pump.error.message
            raise ProcessError(said, exit_code=pump.exit_code, stderr=pump.stderr) from pump.error
        if pump.error is not None:
            raise CLIConnectionError(str(pump.error)) from pump.error

    async def close(self) -> None:
        """End claude, and remove what is left. It comes back, whatever claude does."""
        try:
            if self._pump is not None:
                await self._pump.aclose()
                if self._pump.error is not None:
                    _log.debug("the session ended: %s", self._pump.error.message)
        finally:
            reader = self._reader
            if isinstance(reader, AsyncGeneratorType) and not reader.ag_running:  # one that is being read ends there
                await reader.aclose()

    def is_ready(self) -> bool:
        """Whether claude can be told something."""
        return self._pump is not None and self._pump.takes_more

    async def end_input(self) -> None:
        """Tell claude that nothing more comes."""
        if self._pump is not None:
            self._pump.end_input()
        await anyio.lowlevel.checkpoint()

    def _there(self) -> Pump:
        if self._pump is None:
            raise CLIConnectionError("Not connected: await connect() first.")
        return self._pump


def _with_variables(config: ContainerConfig, env: Mapping[str, str]) -> ContainerConfig:
    """The configuration with these variables, which win over a login that is found elsewhere."""
    if not env:
        return config
    login: dict[str, Any] = {"credentials": "none"} if env.keys() & set(CREDENTIALS.names) else {}
    return attrs.evolve(config, env={**config.env, **env}, **login)


def _variables(options: ClaudeAgentOptions) -> dict[str, str]:
    """What the SDK tells claude of itself."""
    env = {
        "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
        "CLAUDE_AGENT_SDK_VERSION": __version__,
        "CLAUDE_CODE_SDK_READS_SESSION_STATE": "1",  # the SDK waits for the word that a session is idle
    }
    if options.enable_file_checkpointing:
        env["CLAUDE_CODE_ENABLE_SDK_FILE_CHECKPOINTING"] = "true"
    if options.client_app is not None:
        env["CLAUDE_AGENT_SDK_CLIENT_APP"] = options.client_app
    return env


def _hearer(stderr: Callable[[str], None] | None) -> Callable[[bytes], object] | None:
    if stderr is None:
        return None

    def hear(line: bytes) -> None:
        if text := line.decode("utf-8", "replace").rstrip():
            try:
                stderr(text)
            except Exception:  # as the SDK has it: what it is for must not end the session
                _log.debug("the stderr callback failed", exc_info=True)

    return hear


def _decoded(line: bytes | OversizedLine) -> dict[str, Any] | None:
    """A message; None for a line that is none, as some builds of claude print."""
    if isinstance(line, OversizedLine):
        why = ValueError(f"the line has {line.size} bytes")
        raise CLIJSONDecodeError("JSON message exceeded maximum buffer size", why)
    if not line.lstrip().startswith(b"{"):
        return None
    if not fits(line):
        why = ValueError(f"the line has more values or levels than are decoded, in {len(line)} bytes")
        raise CLIJSONDecodeError("JSON message exceeded maximum buffer size", why)
    message: dict[str, Any] | None = load(line)
    if message is None:
        raise CLIJSONDecodeError(line.decode("utf-8", "replace").strip(), ValueError("the line is no JSON"))
    return message


def _prompt(data: str) -> str | None:
    """What the user says on a line for claude, for the record."""
    if '"user"' not in data:
        return None
    try:
        message = json.loads(data)
        if message.get("type") != "user":
            return None
        content = message["message"]["content"]
        if isinstance(content, str):
            return content
        return "\n".join(block.get("text", "[not text]") for block in content)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
