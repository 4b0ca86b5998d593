"""No value of a variable survives in what is scrubbed, however it is spelled there."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container_runner.gateway.scrubber import Scrubber
from tests.records.written import KEY


def test_values_become_their_names_longest_first() -> None:
    scrubber = Scrubber({"SHORT": "abcd", "LONG": "abcdef", "TINY": "abc", "EMPTY": ""})

    assert scrubber.text("abcdef abcd abc") == "[LONG] [SHORT] abc"


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
