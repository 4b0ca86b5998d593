"""The part of the gateway that is in the box: a small script that carries connections, and decides nothing.

It is handed over as an argument, so nothing is installed, and a read-only root is no hindrance. It runs under another
uid than the agent's, which therefore can not touch it.
"""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Final

from container_runner.config.paths import RUN_DIR

MOST_CHANNELS: Final = 200
"""How many connections it carries at a time. More wait to be accepted."""

_SCRIPTS: Final = ("forward.pl", "forward.python", "forward.js")


def forwarder(run: str, port: int) -> list[str]:
    """The command of the forwarder: the first of perl, python3, node and claude that the image has, with its script."""
    return ["sh", "-c", PICK, "sh", run, str(port), str(MOST_CHANNELS), *scripts()]


@functools.cache
def scripts() -> tuple[str, ...]:
    """The scripts for perl, python3 and node."""
    return tuple((files(__package__) / "forwarders" / script).read_text("utf-8") for script in _SCRIPTS)


PICK: Final = f"""\
has() {{ command -v "$1" >/dev/null 2>&1; }}
case :$PATH: in *:/usr/bin:*)
  for file in /usr/lib/*/perl-base/Socket.pm; do
    [ ! -e "$file" ] || [ ! -x /usr/bin/perl ] || exec /usr/bin/perl -e "$4" -- "$1" "$2" "$3"
  done ;;
esac
if has perl && perl -MSocket -MFcntl -MErrno -e 1 2>/dev/null; then exec perl -e "$4" -- "$1" "$2" "$3"; fi
if has python3; then exec python3 -ISc "$5" "$1" "$2" "$3"; fi
if has node; then exec node -e "$6" -- "$1" "$2" "$3"; fi
if has claude && file=$(command -v claude); then
  case $(head -c 4 "$file") in *ELF)
    place={RUN_DIR}/forward-$1
    rm -rf "$place"; mkdir -m 700 "$place" || exit
    printf '%s\n%s\n' "$6" 'await new Promise(() => {{}});' >"$place/forward.mjs"
    BUN_OPTIONS=--preload=$place/forward.mjs exec "$file" "$1" "$2" "$3" ;;
  esac
fi
echo "container-runner: no-interpreter $1" >&2
exit 69
"""
"""Becomes the first of them that there is: `sh -c PICK sh RUN PORT MOST PERL PYTHON NODE`.

Debian and Ubuntu have perl in every image, and it starts fastest; elsewhere it may lack the modules that it is made of,
and to look for them is to start it twice.
A claude of one file is a runtime for JavaScript as well, which runs our script before itself, and so never comes to it.
"""
