"""Renews the table of docs/reliability.md from what `pytest tests/faults --fault-table=FILE` has written.

python -m scripts.fault_table FILE
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"

TABLE = re.compile(r"^\| fault \|.*\n\|[-:|]+\|\n(?:\|.*\n)+", re.MULTILINE)


def renewed(page: str, table: str) -> str:
    """The *page* with another table.

    Raises:
        ValueError: what is given is no such table, or the page has none.
    """
    if TABLE.fullmatch(table) is None:
        raise ValueError("the file must hold the table of a run of tests/faults, and nothing else")
    written, count = TABLE.subn(lambda _: table, page)
    if count != 1:
        raise ValueError(f"{PAGE} must have one table of faults")
    return written


def main(file: str) -> None:
    PAGE.write_text(renewed(PAGE.read_text(), Path(file).read_text()))


if __name__ == "__main__":
    main(*sys.argv[1:])
