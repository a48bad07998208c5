"""docs/api.md: exactly what the features declare."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import api_page
from scripts.api_page import PAGE, page
from scripts.schema_words import SchemaWords, row
from tests.running import ROOT
from tests.test_links import anchors, slug


def test_it_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "write it again: python -m scripts.api_page"


def test_the_check_says_when_it_is_out_of_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["api_page", "--check"])
    assert api_page.main() == 0
    monkeypatch.setattr(api_page, "PAGE", tmp_path / "api.md")
    assert api_page.main() == 1
    (tmp_path / "api.md").write_text(PAGE.read_text().replace("WebSocket", "Socket"))
    assert api_page.main() == 1
    assert capsys.readouterr().out.splitlines() == ["up to date", *["api.md is out of date"] * 2]


def test_it_needs_no_service_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "api_page.py"), "--check"]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "up to date\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_its_anchors_are_githubs_and_each_is_there_once() -> None:
    titles = re.findall(r"^#+ (.*)$", PAGE.read_text(), re.MULTILINE)
    assert [api_page.link(title) for title in titles] == [f"[{title}](#{slug(title)})" for title in titles]
    assert len(titles) == len({slug(title) for title in titles}) == len(anchors(PAGE))


def test_every_field_has_a_type() -> None:
    rows = re.findall(r"^\| `\w+` \|([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    assert len(rows) > 400
    assert not [kind for kind in rows if not kind.strip() or "anything" in kind]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string", "format": "uuid"}, "UUID"),
        ({"type": "string", "format": "date-time"}, "time"),
        ({"type": "string"}, "text"),
        ({"type": "string", "maxLength": 64}, "text of at most 64 characters"),
        ({"type": "string", "minLength": 1, "maxLength": 64}, "text of 1–64 characters"),
        ({"type": "string", "pattern": "^a|b$"}, "text, `^a|b$`"),
        ({"type": "string", "pattern": r"^[^\x00-\x1f]*$", "maxLength": 9}, "text of at most 9 characters"),
        ({"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "number, 0–2^31−1"),
        ({"type": "integer", "minimum": 1}, "number, at least 1"),
        ({"type": "integer", "maximum": 100_000}, "number, at most 100,000"),
        ({"enum": ["a", "b", None]}, "`a`, `b`, `null`"),
        ({"const": True}, "`true`"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "string", "maxLength": 0}]}, "text or `null`"),
        ({"type": "array", "items": {"$ref": "#/components/schemas/Key"}, "maxItems": 3}, "list of <Key>, at most 3"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "object of text"),
    ],
)
def test_types_in_words(schema: dict[str, Any], words: str) -> None:
    assert SchemaWords({"Key": {}}, lambda name: f"<{name}>").kind(schema) == words


def test_a_bar_does_not_end_a_cell() -> None:
    assert row("a|b", r"c\|d", "") == r"| a\|b | c\|d | |"
