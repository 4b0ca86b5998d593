"""The agents as npm has them: what an image needs to have one in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs


@attrs.frozen(kw_only=True)
class AgentPackage:
    """An agent as npm has it."""

    package: str
    """The npm package that `npm install` takes."""

    program: str
    """The command that it installs."""

    version: str
    """The version that is installed if no other is asked for: the one that this package was tried with."""

    archive: str
    """What `npm pack` takes to get the program by itself; {cpu} is x64 or arm64, {version} the version."""

    entry: str
    """Where the program is in that archive, as a pattern."""

    node: str | None = None
    """The version of Node.js that the program runs in; None: it needs none."""

    debian: str = "bookworm"
    """The Debian release that has what the program needs."""

    needs: tuple[str, ...] = ()
    """The Debian packages that the program needs beside those of every image."""


NODE: Final = "22.23.3"
"""The Node.js for what needs one. Debian has none that is new enough for all of them."""

PACKAGES: Final[Mapping[str, AgentPackage]] = {
    "claude": AgentPackage(
        package="@anthropic-ai/claude-code",
        program="claude",
        version="2.1.330",
        archive="@anthropic-ai/claude-code-linux-{cpu}@{version}",
        entry="package/claude",
    ),
    "codex": AgentPackage(
        package="@openai/codex",
        program="codex",
        version="0.171.0",
        archive="@openai/codex@{version}-linux-{cpu}",
        entry="package/vendor/*/bin/codex",
    ),
    "gemini": AgentPackage(
        package="@google/gemini-cli",
        program="gemini",
        version="0.61.0",
        archive="@google/gemini-cli@{version}",
        entry="package/bundle/gemini.js",
        node=NODE,
    ),
    "qwen": AgentPackage(
        package="@qwen-code/qwen-code",
        program="qwen",
        version="0.24.4",
        archive="@qwen-code/qwen-code@{version}",
        entry="package/cli-entry.js",
        node=NODE,
    ),
    "opencode": AgentPackage(
        package="opencode-ai",
        program="opencode",
        version="1.18.33",
        archive="opencode-linux-{cpu}@{version}",
        entry="package/bin/opencode",
    ),
    "copilot": AgentPackage(
        package="@github/copilot",
        program="copilot",
        version="1.0.102",
        archive="@github/copilot-linux-{cpu}@{version}",
        entry="package/copilot",
    ),
}
"""By what --agent-kind and `image build` call each."""
