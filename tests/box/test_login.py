"""What is a login, and what in it is secret."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from container_runner.box.login import read_login

LATER = 1000 * (time.time() + 3600)
EARLIER = 1000 * (time.time() - 3600)
TOKENS = {"accessToken": "a-token", "refreshToken": "r-token"}


@pytest.mark.parametrize(
    ("login", "secrets"),
    [
        ({"token": "t"}, {"token": "t"}),
        ({"OPENAI_API_KEY": "k", "last_refresh": "today"}, {"OPENAI_API_KEY": "k"}),
        ({"oauth": {**TOKENS, "expiresAt": LATER, "scopes": ["user:inference"]}},
         {"oauth.accessToken": "a-token", "oauth.refreshToken": "r-token"}),
        ({"oauth": {**TOKENS, "expiresAt": EARLIER}},
         {"oauth.accessToken": "a-token", "oauth.refreshToken": "r-token"}),
        ({"oauth": {"accessToken": "a-token", "expiresAt": LATER}}, {"oauth.accessToken": "a-token"}),
        # What nobody can log in with.
        ({}, {}), ([], {}), ("token", {}), (None, {}),
        ({"oauth": {}}, {}),
        ({"oauth": {"accessToken": "", "refreshToken": "", "expiresAt": LATER}}, {}),
        ({"oauth": {"accessToken": None, "expiresAt": LATER}}, {}),
        ({"oauth": {**TOKENS, "expiresAt": 0}}, {}),
        ({"oauth": {"accessToken": "a-token", "expiresAt": EARLIER}}, {}),
        ({"a": {"b": {"c": {"d": {"token": "too deep"}}}}}, {}),
    ],
)  # fmt: skip
def test_what_is_secret_in_a_login(tmp_path: Path, login: Any, secrets: dict[str, str]) -> None:
    file = tmp_path / "login.json"
    file.write_text(json.dumps(login))

    assert read_login(file) == {f"login.json:{name}": secret for name, secret in secrets.items()}


@pytest.mark.parametrize(
    ("content", "secrets"),
    [(b" plain-token\n", {"login": "plain-token"}), (b"", {}), (b"\n", {}), (b"{" * 1000, {"login": "{" * 1000})],
)
def test_a_login_that_is_no_json(tmp_path: Path, content: bytes, secrets: dict[str, str]) -> None:
    (tmp_path / "login").write_bytes(content)

    assert read_login(tmp_path / "login") == secrets


def test_a_login_behind_a_link_and_none_behind_a_broken_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text('{"token": "t"}')
    (tmp_path / "login").symlink_to("real")
    (tmp_path / "loop").symlink_to("loop")

    assert read_login(tmp_path / "login") == {"login:token": "t"}
    assert read_login(tmp_path / "loop") == read_login(tmp_path / "nowhere") == read_login(tmp_path) == {}
