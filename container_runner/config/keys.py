"""What is said to a key that a table does not have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NoReturn

from container_runner.config.laws import NOT_SHOWN, refuse

ELSEWHERE: Final[Mapping[str, str]] = {
    **dict.fromkeys(("binds", "mount", "mounts", "volume"), "volumes"),
    "add_dir": "add_dirs",
    **dict.fromkeys(("cli_path", "entrypoint"), "command"),
    "continue_conversation": "--continue on the command line",
    "resume": "--resume on the command line",
    **dict.fromkeys(("cwd", "working_directory", "workspace"), "--workspace on the command line"),
    **dict.fromkeys(("enabled", "sandbox"), "nothing: an agent always runs in a container here"),
    **dict.fromkeys(("net", "network_mode"), "network"),
    "allow_tools": "allowed_tools",
    "append_system_prompt_file": "append_system_prompt",
    "base_image": "image",
    "cap_add": "extra_args, if it must be: all capabilities are dropped",
    **dict.fromkeys(("d", "detach"), "nothing: run it in the background with &, and read along with logs --follow"),
    "cap_drop": "nothing: all capabilities are dropped anyway",
    "cpu": "cpus",
    "denied_tools": "disallowed_tools",
    "docker": "its keys in [defaults], [agents.NAME] or [profiles.NAME]: there is no table of its own",
    "environment": "env, or secrets for names alone",
    "env_file": "secrets, which takes names and reads the values from your environment",
    "fork_session": "--fork on the command line",
    **dict.fromkeys(("dns", "hostname", "platform"), "extra_args, which passes on an option of the engine's"),
    "host_config": "the field for what it sets (network, shm_size, ulimits, devices, add_host, gpus), or extra_args",
    "init": "nothing: there is always one",
    "input_format": "nothing: a prompt is text; the command chat takes one after another",
    **dict.fromkeys(("i", "it", "t", "interactive", "tty"), "nothing: a run asks nothing; see the command shell"),
    "m": "memory, or --model",
    "max_concurrent": "--jobs of `container-runner batch`",
    "mem_limit": "memory",
    "memory_swap": "memory: swap is off, so it is the limit of both",
    "message_limit": "max_turns",
    "output_format": "--json, which prints claude's stream-json",
    "name": "--agent on the command line, or the NAME in [agents.NAME]",
    "plugins": "plugin_dirs",
    "privileged": "extra_args, if it must be: it undoes the box",
    **dict.fromkeys(("print", "verbose"), "nothing: a run prints all that the agent says"),
    "prompt": "the prompt on the command line",
    "publish": "ports",
    "remove": "ephemeral",
    "restart": "nothing: a container lives for its runs",
    "rm": "ephemeral",
    "runtime": "command, or nothing for claude",
    "settings": "setting_sources, or --arg for a flag of the agent's own",
    "security_opt": "extra_args, if it must be: no-new-privileges is always set",
    "system_prompt_append": "append_system_prompt",
    "working_limit": "timeout",
    **dict.fromkeys(("full_auto", "y", "yes", "yolo"), "nothing: nothing asks here, and an agent's limit is the box"),
}
"""What other tools' keys are called here."""


def spelled(key: object) -> str:
    """How an error names a key, which may be anything."""
    return key if isinstance(key, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", key) else "a key"


def refuse_key(
    key: object,
    known: Iterable[str],
    *,
    where: str = "",
    prefix: str = "",
    listed: str | None = None,
    source: str | None = None,
) -> NoReturn:
    """Refuse a key that is none of the *known* ones; say which was meant, or which there are. No value is shown.

    Args:
        where: the path to the table, with what divides it from the key.
        prefix: how the name of a variable begins whose rest is the key in capitals.
        listed: the words for where the others are listed. Default: they are named, unless they are many.

    Raises:
        ConfigError: always.
    """
    keys, shown = list(known), spelled(key)
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(key)).replace("-", "_").lower()
    if meant := ELSEWHERE.get(snake):
        flag = meant.removeprefix("--").partition(" ")[0]
        allowed = f"{flag if flag in keys else meant} ({shown} is another tool's name for it)"
    elif snake != key and snake in keys:
        allowed = f"{snake}, as it is called here"
    else:
        guess = near(snake, keys)
        allowed = f"the keys are {', '.join(keys)}"
        if guess and len(keys) > 9:
            allowed = listed or "`container-runner config` lists all keys"
        if guess:
            allowed = f"perhaps {prefix}{guess.upper() if prefix else guess}; {allowed}"
    name = f"{where}{prefix}{shown.upper() if prefix else shown}"
    refuse(name, NOT_SHOWN, allowed, source=source, told=f"{name} is no key here: {allowed}")


def near(word: str, known: Iterable[str]) -> str | None:
    """The one of the *known* words that was meant, if it is not far-fetched."""
    import difflib  # slow to import, and only a mistake needs it

    found = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    return found[0] if found else None
