"""config/env.example: complete, written from the code, and nothing but the defaults."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from dotenv import dotenv_values
from pydantic import ByteSize
from pydantic.fields import FieldInfo

import plugins
import server
from config.settings import Core, Section, environment
from config.values import Rate
from scripts.configuration_chapters import CHAPTERS
from scripts.configuration_page import WIDTH, default, example
from tests.running import ROOT

EXAMPLE = ROOT / "config" / "env.example"


def sections() -> dict[str, type[Section]]:
    return {"": Core, **{name: module.Settings for name, module in plugins.discover().items()}}


def server_part() -> str:
    return EXAMPLE.read_text().partition("# --- docker-compose.yml only")[0]


def names() -> list[str]:
    return re.findall(r"(?m)^#?([A-Z0-9_]+)=", server_part())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with every default that it comments out."""
    place = tmp_path_factory.mktemp("filled") / "env"
    place.write_text(re.sub(r"(?m)^#([A-Z0-9_]+=)", r"\1", server_part()))
    return place


def test_it_is_up_to_date() -> None:
    assert EXAMPLE.read_text() == example(), "write it again: python -m scripts.configuration_page"


def test_it_names_every_setting_once() -> None:
    # A set, since two features may read the same one.
    fields = {field.upper() for section in sections().values() for field in section.model_fields}
    assert sorted(names()) == sorted(fields)


def test_every_setting_is_explained() -> None:
    lines = server_part().splitlines()
    settings = [(before, line) for before, line in pairwise(lines) if re.match("#?[A-Z0-9_]+=", line)]
    assert [line for before, line in settings if before[:2] != "# "] == []
    assert len(settings) == len(names())


def test_operators_fill_in_the_first_settings_and_keep_the_other_defaults() -> None:
    assert re.findall(r"(?m)^([A-Z0-9_]+)=", EXAMPLE.read_text()) == CHAPTERS[0].patterns
    assert [chapter.first for chapter in CHAPTERS] == [True, *[False] * (len(CHAPTERS) - 1)]


def test_each_setting_has_one_description() -> None:
    """Two features may read the same setting; then they share its field."""
    words: dict[str, set[str | None]] = {}
    for section in sections().values():
        for field, info in section.model_fields.items():
            words.setdefault(field, set()).add(info.description)
    assert {name: texts for name, texts in words.items() if len(texts) != 1 or None in texts} == {}


def test_lines_fit() -> None:
    assert [line for line in EXAMPLE.read_text().splitlines() if len(line) > WIDTH] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Rate(20, 60), "20/minute"),
        (Rate(5, 900), "5/15 minutes"),
        (Rate(256 << 20, 600), "256MiB/10 minutes"),
        (Rate(128 << 30, 86_400), "128GiB/day"),
        (Rate(7, 90), "7/90 seconds"),
        (ByteSize(64 << 20), "64MiB"),
        (ByteSize(0), "0"),
        (ByteSize(1000), "1000"),
        (True, "true"),
        (("a", "b"), "a,b"),
        ((), ""),
        (None, ""),
    ],
)
def test_defaults_are_written_as_operators_write_them(value: object, text: str) -> None:
    assert default("SOME", FieldInfo(default=value)) == text
    if isinstance(value, Rate):
        assert Rate.parse(text) == value


def test_it_holds_no_secret(filled: Path) -> None:
    values = dotenv_values(filled)
    assert len(values) == len(names())
    assert [name for name, value in values.items() if value and ("SECRET" in name or name.endswith("_URL"))] == []


@pytest.mark.parametrize("whole", [True, False], ids=["every default", "as it is"])
def test_loaded_it_is_what_no_settings_are(whole: bool, filled: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    given = server.configure(environment(filled if whole else EXAMPLE, environ={}), make_secrets=False)
    unset = server.configure(environment(empty, environ={}), make_secrets=False)
    assert given == unset
    assert not given.core.production
    for name, section in sections().items():
        read = given.sections[name] if name else given.core
        defaults = section()
        for field in section.model_fields:
            if not field.endswith("_secret"):
                assert getattr(read, field) == getattr(defaults, field), field


@pytest.mark.parametrize("name", ["JWT_SECRET", "TURN_SECRET"])
def test_with_a_database_it_is_no_production_without_secrets(name: str) -> None:
    """MIMU_ENV is left empty there, so that a copy with a DATABASE_URL is judged as production."""
    values = environment(EXAMPLE, environ={"DATABASE_URL": "postgres://mimu@localhost/mimu"})
    with pytest.raises(server.SettingsError) as refused:
        server.configure(values)
    assert any(fault.startswith(f"{name}: missing") for fault in refused.value.faults)
