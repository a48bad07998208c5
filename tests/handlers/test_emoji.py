"""Emoji: the structure of UTS 51, with pictures that Python doesn't know yet, and one form for each."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.wire.emoji import MAX_EMOJI, SELECTOR, canonical, plain

ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
TONES = [chr(code) for code in range(0x1F3FB, 0x1F400)]
INDICATORS = [chr(code) for code in range(0x1F1E6, 0x1F200)]
PEOPLE = "👍☝🧔🕵⛹👩👨🫱\U0001facd"
PICTURES = "❤🔥🏳🌈👁🗨♂♀⚕☠🐦🎄©™ℹ▶☎"

FULL = [
    "👍",
    ENGLAND,
    "👨‍👩‍👧‍👦",
    "#️⃣",
    "❤️",
    "🏳️‍🌈",
    "🏴‍☠️",
    "👁️‍🗨️",
    "🕵🏻‍♂️",
    "⛹🏿‍♀️",
    "👩🏽‍❤️‍💋‍👨🏿",
    "🇩🇪",
    "☝🏽",
    "☝️",
    "🏻",
    "\U0001fae8",
    "\U0001fa77",
    "🐦‍🔥",
    "\U0001fae9",
    "\U0001facd",
    "\U0001fafe",
    "\U0001f6db",
]
NONE = [
    "",
    "a",
    "1",
    "#",
    "*",
    "1\ufe0f",
    "+",
    "é",
    "漢",
    "👍👍",
    "👍 ",
    " 👍",
    "👍a",
    "buy.at/http://evil.example/x",
    "\u202eelpmaxe.live//:ptth",
    "THE-ADMIN-IS-A-FRAUD",
    "\u200b\u200b\u200b",
    "\u200d",
    "👍\u200d",
    "\u200d👍",
    "\ufe0f",
    "\ufe0f👍",
    "👍\ufe0f\ufe0f",
    "👍\ufe0e",
    "🇩",
    "🇩🇪🇫",
    "🇩🇪🇫🇷",
    "\u20e3",
    "🐦\u200d\ufe0f🔥",
    "👍\n",
    "👍\U000e0041\U000e007f",
    "🏴\U000e0067",
    "🏴" + "\U000e0067" * 7 + "\U000e007f",
    "\U000e0067\U000e007f",
]


def alone() -> list[str]:
    """Return the characters of emoji blocks that Python's tables name as emoji."""
    blocks = [(0x1F600, 0x1F650), (0x1F680, 0x1F6D8), (0x1F910, 0x1F93B), (0x1F940, 0x1F946), (0x1F950, 0x1FA00)]
    blocks += [(0x1FA70, 0x1FB00), (0x1F7E0, 0x1F7EC), (0x1F400, 0x1F43F), (0x1F300, 0x1F321)]
    return [chr(code) for first, end in blocks for code in range(first, end) if unicodedata.name(chr(code), "")]


def test_every_emoji_of_unicode_is_one() -> None:
    assert len(alone()) > 500
    for emoji in alone():
        assert canonical(emoji) in (emoji, emoji + SELECTOR)
        assert canonical(emoji + SELECTOR) == canonical(emoji)


@pytest.mark.parametrize("emoji", FULL)
def test_fully_qualified_emoji_stay(emoji: str) -> None:
    assert canonical(emoji) == emoji
    assert canonical(plain(emoji)) == emoji


@pytest.mark.parametrize("sent", ["👍🏽️", "☝️🏽", "👍️", "🇩🇪️", "🏳‍🌈", "❤", "#⃣"])
def test_a_selector_makes_no_other_reaction(sent: str) -> None:
    assert canonical(sent) == canonical(plain(sent)) is not None


def test_no_letter_digit_or_sign_is_an_emoji() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in ("Cn", "Cs") or canonical(character) is None:
            continue
        # Some emoji were letters and signs of mathematics before.
        assert unicodedata.category(character) in ("So", "Sk") or character in "‼⁉ℹ↔⤴⤵〰〽◽◾◼◻", hex(code)


@pytest.mark.parametrize("text", NONE)
def test_text_is_none(text: str) -> None:
    assert canonical(text) is None


@st.composite
def elements(draw: st.DrawFn) -> str:
    kind = draw(st.sampled_from(("person", "picture", "flag", "keycap", "region", "new")))
    if kind == "person":
        return draw(st.sampled_from(PEOPLE)) + draw(st.sampled_from(["", *TONES, SELECTOR]))
    if kind == "picture":
        return draw(st.sampled_from(PICTURES)) + draw(st.sampled_from(["", SELECTOR]))
    if kind == "flag":
        return draw(st.sampled_from(INDICATORS)) + draw(st.sampled_from(INDICATORS))
    if kind == "keycap":
        return draw(st.sampled_from("#*0123456789")) + draw(st.sampled_from(["", SELECTOR])) + "\u20e3"
    if kind == "region":
        return ENGLAND
    return chr(draw(st.integers(0x1FA70, 0x1FAFF)))


@given(st.lists(elements(), min_size=1, max_size=6))
def test_any_sequence_of_the_structure_is_one_emoji(parts: list[str]) -> None:
    sent = "\u200d".join(parts)
    form = canonical(sent)
    if form is None:  # too long: as it was sent, or with the selectors that it should have
        assert len(sent.encode()) + 3 * len(sent) > MAX_EMOJI
        return
    assert len(form.encode()) <= MAX_EMOJI
    assert canonical(form) == form
    assert plain(form) == plain(sent)


@given(st.lists(elements(), min_size=2, max_size=3))
def test_without_joiners_it_is_several(parts: list[str]) -> None:
    assert canonical("".join(parts)) is None or any(part in TONES for part in parts)


@given(st.text(min_size=1, max_size=12))
def test_text_with_a_letter_is_none(text: str) -> None:
    if any(unicodedata.category(c)[0] in "LZC" and c not in "ℹ\u200d" and ord(c) < 0x1F000 for c in text):
        assert canonical(text) is None
