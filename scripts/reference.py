"""The pages in docs/reference/ that are made from the code.

python -m scripts.reference            write them
python -m scripts.reference --check    fail if one is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from scripts import commands_page, configuration_page, errors_page, messages_page

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
PAGES = {
    "configuration.md": configuration_page.page,
    "errors.md": errors_page.page,
    "commands.md": commands_page.page,
    "messages.md": messages_page.page,
}


def main(arguments: list[str], folder: Path = FOLDER) -> int:
    stale = []
    for name, page in PAGES.items():
        path = folder / name
        if path.is_file() and path.read_text("utf-8") == page():
            continue
        stale.append(name)
        if "--check" not in arguments:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(page(), "utf-8")
    if "--check" not in arguments:
        return 0
    for name in stale:
        print(f"{name} is out of date: run python -m scripts.reference", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
