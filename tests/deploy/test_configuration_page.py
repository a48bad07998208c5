"""docs/configuration.md and config/env.example: what the code says, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

import plugins
from config.settings import Core, Section
from config.tiers import TierSettings
from config.values import Items, Networks, RateLimit, WebAddress
from plugins.subscriptions.prices import PriceTag
from scripts import configuration_page
from scripts.configuration_page import KINDS, PAGE, bounds, kind, page, readers


def test_it_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "write it again: python -m scripts.configuration_page"


def test_it_has_every_setting_once_with_who_reads_it() -> None:
    rows = re.findall(r"(?m)^\| `([A-Z0-9_]+)` \|.*\| ([a-z_, ]+) \|$", PAGE.read_text())
    sections: dict[str, type[Section]] = {
        "core": Core,
        **{name: module.Settings for name, module in plugins.discover().items()},
    }
    expected = {
        field.upper(): ", ".join(reader for reader, one in sections.items() if field in one.model_fields)
        for section in sections.values()
        for field in section.model_fields
    }
    assert dict(rows) == expected
    assert len(rows) == len(expected)


def test_secrets_are_marked_and_nothing_else() -> None:
    rows = re.findall(r"(?m)^\| `([A-Z0-9_]+)` \|.*\| \*\*secret[ a-z]*\*\* \|", PAGE.read_text())
    named = {name for name, (_, info) in readers().items() if "SecretStr" in str(info.annotation)}
    assert set(rows) == named
    assert {"JWT_SECRET", "DATABASE_URL", "S3_SECRET_KEY", "BTCPAY_API_KEY", "JWT_PREVIOUS_SECRETS"} <= named


def test_examples_of_each_kind_are_taken() -> None:
    kinds = {
        "rate": RateLimit,
        "size": TierSettings.model_fields["tier_free_file_bytes"].annotation,
        "networks": Networks,
        "list": Items,
        "price": PriceTag,
        "address": WebAddress,
        "yes or no": bool,
        "number": float,
        "path": Path,
    }
    for name, annotation in kinds.items():
        for example in KINDS[name].examples:
            TypeAdapter(annotation).validate_python(example)
    used = {kind(name, info) for name, (_, info) in readers().items()}
    assert used == KINDS.keys()


def test_ranges_are_listed() -> None:
    fields = readers()
    assert bounds(fields["PORT"][1]) == "0 to 65535"
    assert bounds(fields["JWT_EXPIRATION_HOURS"][1]) == "above 0 to 720"
    assert bounds(fields["RATE_LIMITS"][1]) == "`on` or `off`"
    assert bounds(fields["TIER_FREE_FILE_BYTES"][1]) == "from 1"


def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Path, Path]:
    """Files of a test's own in place of the shipped ones, and the words of a command line."""
    files = tmp_path / "env.example", tmp_path / "configuration.md"
    monkeypatch.setattr(configuration_page, "ROOT", tmp_path)
    monkeypatch.setattr(configuration_page, "EXAMPLE", files[0])
    monkeypatch.setattr(configuration_page, "PAGE", files[1])
    monkeypatch.setattr("sys.argv", ["configuration_page", *arguments])
    return files


@pytest.mark.parametrize("stale", [0, 1])
def test_check_names_the_file_that_is_out_of_date_and_writes_nothing(
    stale: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = place(tmp_path, monkeypatch, "--check")
    for path, text in zip(files, (configuration_page.example(), page()), strict=True):
        path.write_text(text)
    assert configuration_page.main() == 0
    assert capsys.readouterr().out == "up to date\n"
    files[stale].write_text("old")
    assert configuration_page.main() == 1
    assert capsys.readouterr().out == f"{files[stale].name} is out of date\n"
    assert files[stale].read_text() == "old"


def test_both_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example, settings = place(tmp_path, monkeypatch)
    assert configuration_page.main() == 0
    assert capsys.readouterr().out == "env.example written\nconfiguration.md written\n"
    assert (example.read_text(), settings.read_text()) == (configuration_page.example(), page())


@pytest.mark.parametrize(
    ("name", "reader", "chapter"),
    [
        ("RATE_LIMIT_POLLS", "polls", "Rate limits"),
        ("POLL_RETENTION_DAYS", "polls", "Retention"),
        ("NEW", "core", "Server"),
        ("NEW", "push", "Push"),
        ("NEW", "polls", "Polls"),  # which is added
    ],
)
def test_a_new_setting_finds_its_chapter(name: str, reader: str, chapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**readers(), name: ([reader], FieldInfo(annotation=int, default=1, description="Something new."))}
    monkeypatch.setattr(configuration_page, "readers", lambda: known)
    before, _, _ = page().partition(f"| `{name}` | Something new. | number | `1` | {reader} |")
    assert re.findall(r"(?m)^## (.*)$", before)[-1] == chapter
    assert f"# Something new.\n#{name}=1\n" in configuration_page.example()


def test_a_new_setting_needs_a_description(monkeypatch: pytest.MonkeyPatch) -> None:
    known = readers()
    monkeypatch.setattr(configuration_page, "readers", lambda: {**known, "NEW": (["core"], FieldInfo(default=1))})
    with pytest.raises(LookupError, match="NEW has no description"):
        configuration_page.example()
