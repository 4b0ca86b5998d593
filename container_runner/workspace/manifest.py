"""Manifests: what is in a folder, as its file system tells it, so that what was changed is found without reading it.

A manifest is the word "facts" or "names", then records, each a path and its facts, and an end: the path "/", which no
record has, with find's exit code. All of these are ended by NUL. The facts are type, inode, size, mode, time of
content, and time of change. The last is the kernel's own, which nobody in a box can choose. A find without `-printf`,
as busybox's, tells the paths alone: then nothing is known to be unchanged.

A `.git` has a record and is not entered. Folders have records only if they can not be entered.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Final

from container_runner.errors import WorkspaceError
from container_runner.workspace.tar import TOO_MUCH, Source, cut_off, garbled

NAMES_LIMIT: Final = 500_000
BYTES_LIMIT: Final = 256 * 1024**2
_LONGEST: Final = 16 * 1024

LIST: Final = r"""
list() {
  if find . -maxdepth 0 -printf '' 2>/dev/null; then
    printf 'facts\0'
    set -- -printf '%p\0%y %i %s %m %T@ %C@\0'
    find . -name .git "$@" -prune -o \
      -type d ! -perm -700 -exec chmod u+rwx {} \; -o \
      -type d '(' ! -readable -o ! -executable ')' "$@" -o \
      ! -type d "$@" -type f ! -perm -400 -exec chmod u+r {} \;
  else
    printf 'names\0'
    find . -name .git -print0 -prune -o \
      -type d ! -perm -700 -exec chmod u+rwx {} \; -o \
      ! -type d -print0 -type f ! -perm -400 -exec chmod u+r {} \;
  fi
  code=$?
  printf '/\0%s\0' "$code"
}
"""
"""A function of a sh that prints the manifest of the current folder. What its owner made unreadable is made readable,
for what can not be read must not look as if it were gone."""

MANIFEST: Final = f'{LIST}\ncd "$1" && list\n'
"""Prints the manifest of a folder: `sh -c MANIFEST sh FOLDER`."""

Facts = bytes
"""What a record says of a path: "TYPE INODE SIZE MODE MTIME CTIME"; b"" if the names stand alone."""


class Manifest:
    """A manifest that is being read: iterate `records`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.code = -1
        """find's exit code, once all has been read."""

    async def records(self) -> AsyncIterator[list[tuple[bytes, Facts]]]:
        """The paths, relative to the folder, with their facts, some at a time.

        Raises:
            WorkspaceError: it is cut off, no manifest, or longer than it may be.
        """
        held = b""
        count = size = 0
        style: bytes | None = None
        while True:
            data = await self.source.some()
            if not data:
                raise cut_off()
            size += len(data)
            *words, held = (held + data).split(b"\0")
            if style is None and words:
                style = words.pop(0)
                if style not in (b"facts", b"names"):
                    raise garbled()
            step = 2 if style == b"facts" else 1
            paths = words[::step]
            end = step * paths.index(b"/") if b"/" in paths else None
            keep = len(words) % step if end is None else max(0, end + 2 - len(words))
            if ended := end is not None and not keep:
                self.code = int(words[end + 1]) if words[end + 1].isdigit() else -1
                self.source.put_back(b"\0".join([*words[end + 2 :], held]))
                words = words[:end]
            elif keep:  # a path whose facts are still to come, or the end without its code
                held = b"\0".join([*words[-keep:], held])
                words = words[:-keep]
            paths = words[::step]
            count += len(paths)
            if count > NAMES_LIMIT or size > BYTES_LIMIT or len(held) > _LONGEST:
                raise WorkspaceError("There are more files in the box than are taken.", next_step=TOO_MUCH)
            if any(not path.startswith(b"./") for path in paths):
                raise garbled()
            all_facts = words[1::2] if step == 2 else [b""] * len(paths)
            yield [(path[2:], facts) for path, facts in zip(paths, all_facts, strict=True)]
            if ended:
                return


def shows(facts: Facts, path: bytes) -> bool:
    """Whether a file of this machine is the one that a box tells of: as it shows through from below an overlay.

    Size and time of change are compared. An overlay tells the inode of the file, or one of its own; and what changes
    the rest of the facts changes the time.
    """
    try:
        info = os.lstat(path)
    except OSError:
        return False
    _, _, size, _, _, changed = facts.split(b" ")
    return changed == b"%d.%09d0" % divmod(info.st_ctime_ns, 10**9) and int(size) == info.st_size
