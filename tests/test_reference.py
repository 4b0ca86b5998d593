"""The pages that are made from the code are as the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.reference import PAGES, main


def test_the_pages_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", PAGES)
def test_the_check_notices_a_page_that_is_not(name: str, tmp_path: Path) -> None:
    main([], tmp_path)
    assert main(["--check"], tmp_path) == 0
    (tmp_path / name).write_text("stale")

    assert main(["--check"], tmp_path) == 1
