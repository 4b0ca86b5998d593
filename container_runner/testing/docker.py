"""`container-runner-fake-docker`: a program in the place of docker that makes no container and asks no daemon.

It answers as an engine where everything goes well, plays each run's agent, and stops it when its lease ends. It is for
tests of the command line and of programs in other languages: name it with --engine or CONTAINER_RUNNER_ENGINE. The
containers that it makes are forgotten, so it plays ephemeral runs on a mounted workspace only.

Variables say what it plays. Their names begin as docker's own do, because docker's client is given no others.

    DOCKER_FAKE_REPLIES    a file with an object of JSON on each line. The first that fits is the answer of claude:
                           {"text": "It is 4.", "prompt": "2 + 2?", "cost_usd": 0.01}
                           "prompt" or "pattern" and "agent" say which runs it fits. "session_id", "usage",
                           "structured_output" and "error" are told beside "text"; or, in the place of all that, "fail"
                           has the kind of an error, such as "image_not_found".
    DOCKER_FAKE_AGENT      a program that is run on this machine in the place of claude, with claude's arguments and
                           the prompt on its stdin, in the workspace. In a live session, what it is told comes there.
    DOCKER_FAKE_CALLS      a file that gets an object of JSON for each command: its "argv", and of a run's also the
                           "prompt", the "variables" and the "grace", secrets among them.
"""

from __future__ import annotations

import sys

from container_runner.testing.output import log, put, refuse


def main() -> int:
    """Answer one command."""
    words = sys.argv[1:]
    if words[:1] in (["run"], ["exec"]):
        from container_runner.testing import container  # it takes several times as long to import as all else here

        return container.answer(words)
    log(words)
    if words == ["--version"]:
        put(b"Docker version 28.2.2, build e6534b4\n")
    elif words[:1] == ["inspect"]:
        put(b"[]\n")
    elif words[:2] == ["image", "inspect"]:
        put(b"sha256:" + b"f" * 64 + b"\n")
    elif words[:1] not in (["ps"], ["rm"]):
        return refuse()
    return 0


if __name__ == "__main__":
    sys.exit(main())
