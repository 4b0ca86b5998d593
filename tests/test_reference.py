"""The pages that are made from the code are as the code says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts import fault_table
from scripts.reference import FOLDER, PAGES, main


def test_the_pages_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", PAGES)
def test_the_check_notices_a_page_that_is_not(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for page in PAGES:
        shutil.copy(FOLDER / page, tmp_path)
    (tmp_path / name).write_text("stale")

    assert main(["--check"], tmp_path) == 1
    assert capsys.readouterr().err.split(" ")[0] == name


def test_the_table_of_faults_is_renewed_from_a_file() -> None:
    page = fault_table.PAGE.read_text()
    head = "| fault | engine | event loop | tries | what the user saw | left | seconds until clean |\n"
    table = f"{head}|---|---|---|--:|---|--:|--:|\n| a fault | docker | trio | 1 | nothing | 0 | 0.1 |\n"

    written = fault_table.renewed(page, table)

    assert written.count("| fault |") == 1
    assert table in written
    assert written.startswith(page[: page.index("| fault |")])
    for bad in ("", "some text\n", head):
        with pytest.raises(ValueError, match="must hold the table"):
            fault_table.renewed(page, bad)
