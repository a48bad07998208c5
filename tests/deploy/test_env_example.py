"""config/env.example: complete, and nothing but the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
from dotenv import dotenv_values

import plugins
import server
from config.settings import Core, Section, environment
from tests.running import ROOT

EXAMPLE = ROOT / "config" / "env.example"


def sections() -> dict[str, type[Section]]:
    return {"": Core, **{name: module.Settings for name, module in plugins.discover().items()}}


def names() -> list[str]:
    lines = EXAMPLE.read_text().splitlines()
    return [line.partition("=")[0] for line in lines if line and not line.startswith("#")]


def test_it_names_every_setting_once() -> None:
    # A set, since two features may read the same one.
    fields = {field.upper() for section in sections().values() for field in section.model_fields}
    assert sorted(names()) == sorted(fields)


def test_every_setting_is_explained() -> None:
    lines = EXAMPLE.read_text().splitlines()
    silent = [line for before, line in zip(["", *lines], lines, strict=False) if "=" in line and before[:2] != "# "]
    assert [line for line in silent if line[0] != "#"] == []


def test_it_holds_no_secret() -> None:
    values = dotenv_values(EXAMPLE)
    assert [name for name, value in values.items() if value and ("SECRET" in name or name.endswith("_URL"))] == []


def test_loaded_it_is_what_no_settings_are(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    given = server.configure(environment(EXAMPLE, environ={}), make_secrets=False)
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
