"""The pages that are made from the code are as the code says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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
