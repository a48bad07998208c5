"""docs/configuration.md: what config/env.example and the code say, and nothing of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter

import plugins
from config.settings import Core, Items, Networks, RateLimit, Section
from config.storage import Endpoint
from config.tiers import TierSettings
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
        "address": Endpoint,
        "yes or no": bool,
        "number": float,
        "path": Path,
    }
    for name, annotation in kinds.items():
        for example in KINDS[name].examples:
            TypeAdapter(annotation).validate_python(example)
    used = {kind(name, info) for name, (_, info) in readers().items()}
    assert used == KINDS.keys()


def test_ranges_are_told() -> None:
    fields = readers()
    assert bounds(fields["PORT"][1]) == "0 to 65535"
    assert bounds(fields["JWT_EXPIRATION_HOURS"][1]) == "above 0 to 720"
    assert bounds(fields["RATE_LIMITS"][1]) == "`on` or `off`"
    assert bounds(fields["TIER_FREE_FILE_BYTES"][1]) == "from 1"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("HTTP and WebSocket port; 0 takes a free one.", "Another word."),
        ("PORT=8080", "PORT=8081"),
        ("TRUSTED_PROXIES=\n", ""),
    ],
)
def test_a_change_of_the_example_makes_it_out_of_date(
    before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = tmp_path / "env.example"
    text = configuration_page.EXAMPLE.read_text()
    assert before in text
    example.write_text(text.replace(before, after))
    monkeypatch.setattr(configuration_page, "EXAMPLE", example)
    if after:
        assert page() != PAGE.read_text()
    else:
        with pytest.raises(LookupError, match="lacks TRUSTED_PROXIES"):
            page()
