"""Text for people: display names, titles and descriptions that are visible and cannot disturb the text around them.

Unicode TR 36 (sections 2.10 and 3.1) and TR 39 describe how such text can be abused. It is stored unchanged, in NFC.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

# Not allowed: controls, line and paragraph separators, embeddings, overrides and isolates of direction, deprecated
# format characters, annotations, U+FEFF, tags and the code points reserved next to them, and noncharacters.
_CONTROLS = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # except tab, line feed and carriage return
_BREAKS = "\t\n\r"
_NEVER = (
    "\u2028\u2029\u202a-\u202e\u2066-\u206f\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
) + "".join(chr(plane << 16 | last) for plane in range(1, 17) for last in (0xFFFE, 0xFFFF))
_REFUSED = re.compile(f"[{_CONTROLS}{_NEVER}]")
_REFUSED_IN_A_LINE = re.compile(f"[{_CONTROLS}{_BREAKS}{_NEVER}]")

# Letters and symbols by category that are invisible: fillers of Hangul, blanks of Braille and of other scripts.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\U0001d159\U00013441\U00013442\U00016fe4")
_VISIBLE_FORMATS = frozenset(  # format characters that are visible: Arabic, Syriac and Kaithi signs before numbers
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
_JOINERS = re.compile("[\u200c\u200d]")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef\u180b-\u180d\u180f]")
# Scripts whose letters neither join nor form clusters: a joiner between them can only deceive.
_NOT_JOINING = re.compile(
    "LATIN |GREEK |CYRILLIC |ARMENIAN |GEORGIAN |HEBREW |CJK |HIRAGANA |KATAKANA |HANGUL |BOPOMOFO |FULLWIDTH |"
    "HALFWIDTH |CHEROKEE |COPTIC |RUNIC |OGHAM |GOTHIC |DESERET "
)


def visible(text: str) -> bool:
    """True if the text has a base character that is not blank."""
    return any(_is_visible(character) for character in text)


def _is_visible(character: str) -> bool:
    kind = unicodedata.category(character)
    if kind[0] in "LNPS" or kind in ("Mc", "Co", "Cn"):  # Cn: a script or an emoji newer than our tables
        return character not in _BLANK and not _SELECTORS.match(character)
    return character in _VISIBLE_FORMATS


def _check(text: str, refused: re.Pattern[str]) -> str:
    text = unicodedata.normalize("NFC", text)
    if refused.search(text):
        raise ValueError("contains a control character, or one that reverses or hides text")
    for place, character in enumerate(text):
        if _JOINERS.match(character) and not _joins(text, place):
            raise ValueError("contains a joiner between characters that do not join")
        if _SELECTORS.match(character) and not (place and _selects(text[place - 1])):
            raise ValueError("contains a variation selector after a character without variants")
    return text


def _joins(text: str, place: int) -> bool:
    """True if a joiner is allowed here: after an emoji, or a letter of a script that joins, with its marks."""
    while place and unicodedata.category(text[place - 1])[0] == "M":
        place -= 1
    if not place:
        return False
    before = text[place - 1]
    kind = unicodedata.category(before)
    if kind[0] == "L":
        return not _NOT_JOINING.match(unicodedata.name(before, ""))
    return kind in ("So", "Sk", "Cn") or before in "\u2194\u2195\u25b6\u2665"


def _selects(before: str) -> bool:
    """True if a variation selector is allowed after this character."""
    return _is_visible(before) and not _JOINERS.match(before)


def line(text: str) -> str:
    """Return one line of text in NFC. Raises ValueError for characters that control, reverse or hide text."""
    return _check(text, _REFUSED_IN_A_LINE)


def visible_line(text: str) -> str:
    """Return one line of visible text in NFC. Raises ValueError."""
    text = line(text)
    if not visible(text):
        raise ValueError("must have a visible character")
    return text


def paragraphs(text: str) -> str:
    """Return text of several lines in NFC. Raises ValueError for characters that control, reverse or hide text."""
    return _check(text, _REFUSED)


@dataclass(frozen=True, slots=True)
class Line:
    """The type of a name or title: one visible line of at most ``most`` characters, counted in NFC."""

    most: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _checked(handler(source), visible_line, self.most)

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {
            "type": "string",
            "minLength": 1,
            "maxLength": self.most,
            "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$",
            "description": "Has a visible character; no controls, no overrides of direction, no tags. Stored in NFC.",
        }


@dataclass(frozen=True, slots=True)
class Paragraphs:
    """The type of a description: lines with at most ``most`` characters in all, counted in NFC."""

    most: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _checked(handler(source), paragraphs, self.most)

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {
            "type": "string",
            "maxLength": self.most,
            "description": "No controls except new lines and tabs, no overrides of direction. Stored in NFC.",
        }


def _checked(schema: CoreSchema, rule: Callable[[str], str], most: int) -> CoreSchema:
    def check(text: str) -> str:
        # NFC makes a text at most three times shorter, so longer texts need no check.
        text = rule(text) if len(text) <= most * 3 else text
        if len(text) > most:
            raise ValueError(f"longer than {most} characters")
        return text

    return core_schema.no_info_after_validator_function(check, schema)


VisibleText = Annotated[str, Line(128)]  # for names and titles without another limit
DisplayName = Annotated[str, Line(64)]
Title = Annotated[str, Line(128)]
Bio = Annotated[str, Paragraphs(500)]


class EmptyIsNull:
    """For optional text fields of a profile: an empty string clears the field, as null does (contract section 1)."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: None if value == "" else value, handler(source)
        )

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "string", "maxLength": 0}]}


EMPTY_IS_NULL = EmptyIsNull()
