"""Names, titles and descriptions: they are visible, reverse no text, and are stored unchanged in NFC."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from handlers.wire.text import Bio, DisplayName, Title, VisibleText

name: TypeAdapter[str] = TypeAdapter(DisplayName)
bio: TypeAdapter[str] = TypeAdapter(Bio)

TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
HIDDEN = "\u2028\u2029\ufeff\ufff9\U000e0001\U000e0041\U000e007f\U0001ffff\ufdd0\u206a"


@pytest.mark.parametrize(
    "text", ["", " ", "\u00a0\u3000", "\u200b", "\u3164", "\u2800", "\u115f\u1160", "\u200e", "\u00ad", "\u0301"]
)
def test_a_name_shows_something(text: str) -> None:
    with pytest.raises(ValidationError, match="visible character"):
        name.validate_python(text)


@pytest.mark.parametrize("sign", [*TURNING, *HIDDEN, "\x00", "\x1f", "\x7f", "\x85", "\t", "\n", "\r"])
def test_a_name_turns_and_hides_nothing(sign: str) -> None:
    for kind in (DisplayName, Title, VisibleText):
        with pytest.raises(ValidationError, match="control character"):
            TypeAdapter(kind).validate_python(f"Ann{sign}a")


@pytest.mark.parametrize(
    "text", ["a\u200db", "Ан\u200cна", "\u200dAnn", "a\ufe0f\ufe0f", "\ufe0fa", "漢\u200d字", "1\u200d2"]
)
def test_a_joiner_joins_something(text: str) -> None:
    with pytest.raises(ValidationError, match=r"do not join|without variants"):
        name.validate_python(text)


@pytest.mark.parametrize(
    "text",
    [
        "Ann",
        "مرحبا",
        "می‌خواهم",
        "שלום\u200f!",
        "क्‍ष",
        "ශ්‍රී",
        "😀",
        "👨‍👩‍👧‍👦 Иван",
        "❤️‍🔥 Ann",
        "👍🏽",
        "葛\U000e0100",
        "#️⃣",
        "\U0001facd",  # newer than Python's tables
        "O’Brien-Šmíd",
        "ㅤ김",
        "  two  blanks ",
    ],
)
def test_real_names_are_accepted_unchanged(text: str) -> None:
    assert name.validate_python(text) == text


def test_lengths_count_what_is_stored() -> None:
    assert name.validate_python("e\u0301" * 64) == "é" * 64
    for text in ("é" * 65, "e\u0301" * 65, "x" * 100_000):
        with pytest.raises(ValidationError, match="longer than 64"):
            name.validate_python(text)


def test_a_description_has_lines() -> None:
    assert bio.validate_python("one\r\n\ttwo") == "one\r\n\ttwo"
    assert bio.validate_python("   ") == "   "
    for sign in (*TURNING, *HIDDEN, "\x00", "\x0b", "\x1b"):
        with pytest.raises(ValidationError):
            bio.validate_python(f"a{sign}b")


@given(st.text(max_size=80))
def test_any_text_is_refused_or_kept(text: str) -> None:
    try:
        kept = name.validate_python(text)
    except ValidationError:
        return
    assert kept == unicodedata.normalize("NFC", text)
    assert name.validate_python(kept) == kept
    assert not set(kept) & set(TURNING + HIDDEN)
