"""No value of a variable survives in what a run leaves."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_subprocess import FakeProcess

from container_runner.box.plan import Plan
from container_runner.records.scrubber import Scrubber
from container_runner.runner.planning import make_plan
from container_runner.testing import FakeEngine
from tests.records.written import KEY, RESULT, all_of, lines, options, recorder, runner, said, summary, take


def nested(text: str, times: int, **how: Any) -> str:
    """*text* as JSON in JSON has it."""
    for _ in range(times):
        text = json.dumps({"x": text}, **how)
    return text


HARD = 'p"a\\ss\nwört/<&>☃'
FORMS: dict[str, Callable[[str], bytes]] = {
    "as it is": lambda value: json.dumps({"text": value}, ensure_ascii=False).encode(),
    "escaped to ASCII": lambda value: json.dumps({"text": value}).encode(),
    "every character escaped": lambda value: (
        b'{"text":"' + "".join(f"\\u{ord(char):04x}" for char in value).encode() + b'"}'
    ),
    "every character escaped, capitals": lambda value: (
        b'{"text":"' + "".join(f"\\u{ord(char):04X}" for char in value).encode() + b'"}'
    ),
    "slashes escaped": lambda value: json.dumps({"text": value}).replace("/", "\\/").encode(),
    "as browsers like it": lambda value: (
        json.dumps({"text": value}).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()
    ),
    "in other words": lambda value: json.dumps({"text": f"it is {value}, he said"}).encode(),
    "as a key": lambda value: json.dumps({"env": {value: 1}}).encode(),
    "in a list": lambda value: json.dumps({"content": [[{"text": [value]}]]}).encode(),
    "JSON in JSON": lambda value: json.dumps({"text": nested(value, 1)}).encode(),
    "JSON in JSON, not ASCII": lambda value: json.dumps({"text": nested(value, 1, ensure_ascii=False)}).encode(),
    "JSON in JSON in JSON": lambda value: json.dumps({"text": nested(value, 2)}).encode(),
    "not JSON": lambda value: b"it is " + json.dumps(value).encode(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [KEY, HARD, "密码密码密码", "0123456789"], ids=["key", "hard", "unicode", "digits"])
def test_a_secret_is_in_no_transcript_however_it_is_spelled(
    state: Path, value: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", value)
    with recorder(state, secrets=("TOKEN",)) as at_work:
        take(at_work, b'{"type":"assistant"}', FORMS[form](value), b'{"type":"assistant"}')

    _, before, line, after = lines(state)
    shown = json.dumps(line, ensure_ascii=False)
    assert "[TOKEN]" in shown
    for escaped in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
        assert escaped not in shown
    assert before["message"] == after["message"] == {"type": "assistant"}


def test_values_become_their_names_longest_first() -> None:
    scrubber = Scrubber({"SHORT": "abcd", "LONG": "abcdef", "TINY": "abc", "EMPTY": ""})

    assert scrubber.text("abcdef abcd abc") == "[LONG] [SHORT] abc"


async def test_what_another_plan_than_the_first_has_is_in_no_record(
    fake_engine: FakeEngine, fp: FakeProcess, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def planned(*args: Any, **more: Any) -> Plan:
        made.append(f"t0ken-number-{len(made)}")
        plan = make_plan(*args, **more)
        return attrs.evolve(plan, hidden={**plan.hidden, "TOKEN": made[-1]})

    monkeypatch.setattr("container_runner.runner.runner.make_plan", planned)
    busy = "docker: Error response from daemon: context deadline exceeded"
    fp.register(["docker", "run", fp.any()], returncode=125, stderr=busy)
    fake_engine.messages([*(f"it is t0ken-number-{number}" for number in range(3)), RESULT])

    await all_of(runner(state))

    assert len(made) == 3  # the first one, one with our folders, and one for the second start
    written = b"".join(path.read_bytes() for path in (state / "runs" / "bot").iterdir()).decode()
    assert written.count("it is [TOKEN]") == 3
    assert "t0ken" not in written


def test_values_can_be_added() -> None:
    scrubber = Scrubber({"TOKEN": "first-token"})
    assert scrubber.text("first-token second-token") == "[TOKEN] second-token"

    scrubber.add({"TOKEN": "second-token"})

    assert scrubber.text("first-token second-token") == "[TOKEN] [TOKEN]"
    assert scrubber.may_hold(b"second-token")


def lines_of(text: str, width: int, end: str) -> str:
    return end.join(text[at : at + width] for at in range(0, len(text), width))


@given(
    value=st.from_regex(rb"[!-~]{8,200}", fullmatch=True),
    before=st.binary(max_size=5),
    after=st.binary(max_size=5),
    urlsafe=st.booleans(),
    width=st.sampled_from([64, 76, 1000]),
    end=st.sampled_from(["\n", "\r\n", "\\n"]),
)
@settings(max_examples=300)
def test_no_base64_survives(value: bytes, before: bytes, after: bytes, urlsafe: bool, width: int, end: str) -> None:
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    scrubber = Scrubber({"Z": value.decode("utf-8", "surrogateescape")})

    told = scrubber.text(lines_of(encode(before + value + after).decode(), width, end))

    assert "[Z]" in told
    # What is left of it is what its neighbours in the first and the last three bytes have a part in.
    assert len(told.replace("[Z]", "").replace(end, "")) <= 4 * (len(before + after) // 3 + 3)


def test_base64_is_found_before_anything_is_decoded() -> None:
    scrubber = Scrubber({"KEY": KEY})
    for before in ("", "a", "ab"):
        line = json.dumps({"text": lines_of(base64.b64encode(f"{before}{KEY}".encode()).decode(), 76, "\n")}).encode()
        assert scrubber.may_hold(line)
        assert "[KEY]" in scrubber.dump(json.loads(line)).decode()


@pytest.mark.parametrize(
    "form", ["p%40ss%2Fw%C3%B6rd%20x", "p%40ss%2fw%c3%b6rd%20x", "p%40ss/w%C3%B6rd%20x", "p%40ss%2Fw%C3%B6rd+x"]
)
def test_a_url_holds_no_secret(form: str) -> None:
    scrubber = Scrubber({"KEY": "p@ss/wörd x"})

    assert scrubber.may_hold(json.dumps({"text": form}).encode())
    assert scrubber.text(f"https://u:{form}@host/") == "https://u:[KEY]@host/"


def test_an_open_variable_and_a_short_secret_are_not_looked_for_in_base64() -> None:
    scrubber = Scrubber({"OPEN": "production", "SHORT": "abcdef"}, plain=["OPEN"])
    said = base64.b64encode(b"production abcdef").decode()

    assert scrubber.text(said) == said


async def test_what_is_in_a_mounted_login_file_is_in_no_record_and_no_error(
    fake_engine: FakeEngine, state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".claude").mkdir()
    login = tmp_path / ".claude/.credentials.json"
    login.write_text(json.dumps({"claudeAiOauth": {"accessToken": KEY, "expiresAt": 9e15}}))
    login.chmod(0o644)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    fake_engine.messages([f"it is {KEY}", {**RESULT, "is_error": True, "result": KEY}], exit_code=1, stderr=KEY)

    *_, error = await all_of(runner(state), options())

    written = b"".join(path.read_bytes() for path in (state / "runs" / "bot").iterdir()).decode()
    assert KEY not in written + repr(error) + error.to_json().decode()
    assert "[.credentials.json:claudeAiOauth.accessToken]" in written


@given(
    value=st.text(st.characters(exclude_characters="[]Z\r\n", codec="utf-8"), min_size=4, max_size=30),
    ascii_only=st.booleans(),
    around=st.text(max_size=20),
)
def test_no_text_survives_scrubbing(value: str, ascii_only: bool, around: str) -> None:
    scrubber = Scrubber({"Z": value})
    line = json.dumps({"text": f"{around}{value}{around}"}, ensure_ascii=ascii_only).encode("utf-8", "replace")

    assert scrubber.may_hold(line)
    assert value not in json.loads(scrubber.dump(json.loads(line)))["text"].replace("[Z]", "[")


async def test_secrets_are_scrubbed_of_all_that_a_run_leaves(
    fake_engine: FakeEngine, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("PIN", "4711")
    failed = {**RESULT, "is_error": True, "result": f"Bad key {KEY}"}
    fake_engine.messages(
        [{"type": "system", "session_id": "s", "env": {"k": KEY}}, f"PIN is 4711, {KEY}", failed],
        exit_code=1, stderr=f"rejected {KEY}\n",
    )  # fmt: skip

    given_ = options(f"use {KEY} and 4711 and host=db.example.org")
    await all_of(runner(state, secrets=("PIN",), env={"HOST": "db.example.org"}), given_)

    written = b"".join(path.read_bytes() for path in (state / "runs" / "bot").iterdir()).decode()
    assert "api03" not in written
    assert "db.example.org" not in written
    assert "4711" not in written
    assert "[ANTHROPIC_API_KEY]" in written
    assert summary(state)["message"] == "claude failed: Bad key [ANTHROPIC_API_KEY]"


def test_each_line_of_a_secret_of_many_lines_is_scrubbed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEM", "-----BEGIN KEY-----\nMIIEowIBAAKCAQEA0Z3VS5JJ\nshort\n-----END KEY-----\n")
    with recorder(state, secrets=("PEM",)) as at_work:
        take(at_work, json.dumps({"text": "  2\tMIIEowIBAAKCAQEA0Z3VS5JJ"}).encode())

    assert said(state) == [{"text": "  2\t[PEM]"}]


def test_an_open_variable_with_a_common_value_does_not_mangle_the_transcript(state: Path) -> None:
    line = b'{"type":"assistant","message":{"role":"assistant","ok":true,"text":"main is assistant"}}'
    with recorder(state, env={"A": "assistant", "B": "true", "C": "main"}) as at_work:
        take(at_work, line)

    expected = {"type": "assistant", "message": {"role": "assistant", "ok": True, "text": "main is [A]"}}
    assert said(state) == [expected]
