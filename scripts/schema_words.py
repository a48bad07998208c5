"""JSON Schema in words: types, bounds and fields as the tables of docs/api.md show them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]

LONGEST_PATTERN = 60  # characters; a longer one says less than the description beside it
# Descriptions that say no more than the type.
PLAIN = {"Base64, standard or URL-safe, padded or not.", "Base64, standard and padded."}
FORMATS = {"uuid": "UUID", "date-time": "time"}


class SchemaWords:
    """Types of one OpenAPI document. ``link`` returns the words for a named type, and notes that it is mentioned."""

    def __init__(self, named: Mapping[str, Json], link: Callable[[str], str]) -> None:
        self.named, self._link = named, link

    def resolved(self, schema: Json) -> Json:
        """Return the schema to which a reference points; a schema that is no reference is returned unchanged."""
        return self.named[name_of(schema)] if "$ref" in schema else schema

    def kind(self, schema: Json) -> str:
        """Describe a type with its bounds, in a few words."""
        if "$ref" in schema:
            return self._link(name_of(schema))
        for several in ("anyOf", "oneOf"):
            if several in schema:
                kinds = [
                    self.kind(one) for one in schema[several] if one.get("maxLength") != 0
                ]  # an empty text is null
                return " or ".join(dict.fromkeys(kinds))
        if "const" in schema or "enum" in schema:
            values = schema.get("enum", [schema.get("const")])
            return ", ".join(map(literal, values))
        kinds = schema.get("type", "object" if "properties" in schema else "anything")
        if isinstance(kinds, list):
            return " or ".join(self.kind({**schema, "type": kind}) for kind in kinds)
        return self._of_type(kinds, schema)

    def _of_type(self, kind: str, schema: Json) -> str:
        if kind in ("null", "anything"):
            return "`null`" if kind == "null" else kind
        if kind == "array":
            most = _span(schema.get("minItems"), schema.get("maxItems"))
            of = self.kind(schema.get("items", {}))
            return f"list of {of}, {most}" if most else f"list of {of}"
        if kind in ("integer", "number"):
            bounds = _span(schema.get("minimum"), schema.get("maximum"))
            return f"number, {bounds}" if bounds else "number"
        if kind == "boolean":
            return "`true` or `false`"
        if kind == "object":
            values = schema.get("additionalProperties")
            return f"object of {self.kind(values)}" if isinstance(values, dict) and values else "object"
        return _text(schema)

    def words(self, schema: Json) -> str:
        """Return the description of a field, or of one of its alternatives or items; empty if there is none."""
        inner = [one for several in ("anyOf", "oneOf") for one in schema.get(several, ())]
        found = [schema.get("description"), *(one.get("description") for one in inner)]
        items = schema.get("items", {})
        result = [paragraph(words) for words in [*found, items.get("description")] if words]
        return next((words for words in result if words not in PLAIN), "")

    def fields(self, schema: Json, *, accepted: bool, hide: frozenset[str] = frozenset()) -> Iterator[str]:
        """Yield a row for each field of an object that clients send (``accepted``), or receive."""
        required = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            if name in hide:
                continue
            words = [self.words(field)] if self.words(field) else []
            if name not in required and not accepted and "default" not in field:
                words.insert(0, "Not always there.")
            elif name not in required:
                default = field.get("default")
                unless = "" if default in (None, [], (), {}) else f"; default {literal(default)}"
                words.insert(0, f"Optional{unless}.")
            yield row(f"`{name}`", self.kind(field), " ".join(words))


def literal(value: object) -> str:
    """Format a value as JSON; a text without quotes."""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def name_of(schema: Json) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def table(*heads: str) -> list[str]:
    return [row(*heads), "|" + "---|" * len(heads)]


def row(*cells: str) -> str:
    """Format a row of a table; bars in cells are escaped."""
    shown = (re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells)
    return "".join(f"| {cell} " if cell else "| " for cell in shown) + "|"


def paragraph(words: str) -> str:
    """Turn a docstring into one line of Markdown."""
    return " ".join(words.replace("``", "`").split())


def _text(schema: Json) -> str:
    if schema.get("contentEncoding") == "base64":
        return "base64"
    if schema.get("format") in FORMATS:
        return FORMATS[schema["format"]]
    bounds = _span(schema.get("minLength"), schema.get("maxLength"))
    words = [f"text of {bounds} characters" if bounds else "text"]
    pattern = schema.get("pattern", "")
    if pattern and len(pattern) <= LONGEST_PATTERN and "\\x" not in pattern:  # a description says that better
        words.append(f"`{pattern}`")
    return ", ".join(words)


def _span(least: float | None, most: float | None) -> str:
    if least is None or (not least and most is None):
        return "" if most is None else f"at most {_number(most)}"
    return f"at least {_number(least)}" if most is None else f"{_number(least)}–{_number(most)}"


def _number(value: float) -> str:
    """Format a number with thousands separators, and large powers of two as such."""
    for offset in (0, 1):
        exponent = int(value + offset).bit_length() - 1
        if exponent >= 31 and value + offset == 1 << exponent:
            return f"2^{exponent}" + ("−1" if offset else "")
    return f"{value:,}"
