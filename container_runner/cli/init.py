"""`container-runner init`: a configuration file in which everything is explained."""

from __future__ import annotations

import os
import shlex
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from cyclopts import Parameter

from container_runner.cli.config import as_toml, explanations, quoted
from container_runner.cli.containers import JsonFlag, print_json
from container_runner.cli.text import clean
from container_runner.config.fields import FIELDS, defaults, parse
from container_runner.config.protected import WORKSPACE_FILE
from container_runner.config.tiers import default_file
from container_runner.config.tightening import TIGHTENING
from container_runner.errors import ConfigError, StateError
from container_runner.folders import expanded

EXAMPLES: dict[str, str] = {
    "image": '"my/claude"',
    "allow_hosts": '["@pypi", "@npm", "github.com"]',
    "allow_addresses": '["10.1.0.0/16"]',
    "inject": '["api.example.com Authorization: Bearer {} EXAMPLE_TOKEN"]',
    "host_mcp_servers": '{ files = "files-server /srv/docs" }',
    "cpus": "1.5",
    "cpu_period": "100000",
    "cpu_quota": "150000",
    "user": '"1000:1000"',
    "volumes": '["~/data:/data:ro"]',
    "unprotected": '[".git/hooks"]',
    "protected": '["deploy.sh"]',
    "env": '{ LANG = "C.UTF-8" }',
    "secrets": '["GITHUB_TOKEN"]',
    "optional_secrets": '["NPM_TOKEN"]',
    "ports": '["8080:80"]',
    "tmpfs": '["/cache:size=64m"]',
    "labels": '{ team = "web" }',
    "ulimits": '["nofile=1024:2048"]',
    "gpus": '"all"',
    "disk_limit": '"5g"',
    "shm_size": '"64m"',
    "add_host": '["host.internal:host-gateway"]',
    "devices": '["/dev/fuse"]',
    "extra_args": '["--runtime=runsc"]',
    "command": '"my-agent --fast"',
    "setup": '"npm ci"',
    "check": '"npm test"',
    "model": '"opus"',
    "base_url": '"https://models.example/v1"',
    "fallback_model": '"sonnet"',
    "effort": '"high"',
    "system_prompt": '"You are careful."',
    "permission_mode": '"acceptEdits"',
    "allowed_tools": '["Read", "Bash(git log:*)"]',
    "disallowed_tools": '["WebFetch"]',
    "tools": '["Read", "Edit"]',
    "setting_sources": '["project"]',
    "add_dirs": '["~/libraries"]',
    "plugin_dirs": '["/workspace/plugin"]',
    "mcp_servers": '{ files = { command = "files-server" } }',
    "max_turns": "50",
    "args": '["--debug"]',
    "append_system_prompt": '"Answer in one sentence."',
    "json_schema": '{ type = "object", properties = { ok = { type = "boolean" } } }',
    "max_budget_usd": "5.0",
    "timeout": '"30m"',
}
"""Values to show for fields whose default is nothing."""

RECOMMENDED: dict[str, str] = {"network": '"gateway"'}
"""What the operator's file says by itself: better than the default, which works with more images and programs."""

_OPERATOR = """\
# The configuration of container-runner on this machine.
# `container-runner config` prints what it comes to, and `container-runner config schema` describes it to an editor.
# From the weakest to the strongest: [defaults], [agents.NAME], [profiles.NAME], the environment
# (CONTAINER_RUNNER_MEMORY=1g), the flags (--memory=1g). What stands behind a # is the default, or an example.
"""

_WORKSPACE = """\
# What this workspace asks of container-runner.
# An agent can write this file, so it may only tighten what the operator of the machine has decided:
# a value that would loosen anything is refused. What stands behind a # is the default, or an example.
"""


def init(
    *,
    image: str | None = None,
    config: Path | None = None,
    workspace: Annotated[Path | None, Parameter(alias="-w")] = None,
    force: Annotated[bool, Parameter(negative=())] = False,
    json: JsonFlag = False,
) -> None:
    """Write a configuration file in which every field is explained.

    Args:
        image: The image that agents run in, written into the file.
        config: Where to write it. Default: config.toml in the folder for such things in your home.
        workspace: Write the file of this workspace instead, .container-runner.toml.
        force: Replace a file that is there.
        json: Print JSON for programs instead of text for people.
    """
    if image is not None:
        parse("image", image, "--image")
    if workspace is None:
        path, text, mode = expanded(config or default_file(), "--config").absolute(), operator_file(image), 0o600
    elif image is not None or config is not None:
        raise ConfigError("--workspace", str(workspace), "no --image and no --config beside it")
    elif not expanded(workspace, "--workspace").is_dir():
        raise ConfigError("--workspace", str(workspace), "a folder that exists")
    else:
        path, text, mode = expanded(workspace, "--workspace").resolve() / WORKSPACE_FILE, workspace_file(), 0o644
    try:
        write(path, text, force=force, mode=mode)
    except OSError as error:
        if isinstance(error, FileExistsError) and os.path.lexists(path):
            allowed = "a path where there is nothing yet, or --force to replace it"
            told = f"{path} is there already; --force replaces it"
            raise ConfigError("file", str(path), allowed, told=told) from None
        message = f"{path} can not be written: {error.strerror}."
        raise StateError(message, next_step="Name another place, or give access to this one.") from None
    if json:
        print_json({"path": str(path)})
    else:
        flags = [] if config is None else [f"--config={path}"]
        flags += [] if workspace is None else [f"--workspace={path.parent}"]
        shown = clean(shlex.join(["container-runner", "config", *flags]))
        print(f"Wrote {clean(str(path))}. To see what it comes to, type: {shown}")


def write(path: Path, text: str, *, force: bool, mode: int) -> None:
    """Write a file whole, or not at all. A symbolic link in its place is replaced, not followed.

    Raises:
        FileExistsError: something is there, and *force* is not set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  a descriptor
            file.write(text)
            os.fchmod(descriptor, mode)
        if force:
            Path(temporary).replace(path)
        else:
            os.link(temporary, path)  # which refuses what is there already
    finally:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()


def operator_file(image: str | None = None) -> str:
    """The operator's file, with everything but the *image* and `RECOMMENDED` commented out."""
    fields = _fields((name for name in FIELDS if name != "image"), RECOMMENDED)
    named = f"image = {quoted(image)}" if image is not None else f"# image = {EXAMPLES['image']}"
    tail = '# [agents.reviewer]\n# workspace_mode = "ro"\n# model = "opus"\n\n# [profiles.offline]\n# network = "none"'
    return "\n".join((_OPERATOR, "[defaults]", *_explained("image"), named, "", *fields, tail, ""))


def workspace_file() -> str:
    """A workspace's file, with everything commented out."""
    names = [name for name in FIELDS if name in (*TIGHTENING, "labels", "tmpfs")]
    return "\n".join((_WORKSPACE, *_fields(names)))


def _fields(names: Iterable[str], said: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    for name in names:
        yield from _explained(name)
        if name in said:
            yield f"{name} = {said[name]}"
        else:
            yield f"# {name} = {EXAMPLES.get(name) or as_toml(name, defaults()[name])}"
        yield ""


def _explained(name: str) -> Iterator[str]:
    for line in textwrap.wrap(explanations()[name], 100, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}"
