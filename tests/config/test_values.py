"""The types of values in settings: addresses of services, and settings that need another one."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field, SecretStr

from config.settings import Section, SettingsError, load
from config.urls import split_web
from config.values import WebAddress, needs, web_address


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("https://files.example.org", "https://files.example.org"),
        ("http://minio:9000/", "http://minio:9000"),
        ("http://[::1]:9000/s3", "http://[::1]:9000/s3"),
    ],
)
def test_addresses_of_services(given: str, taken: str) -> None:
    assert web_address(given) == taken


WRONG = [
    "files.example.org",
    "ftp://files.example.org",
    "https://",
    "https://user:password@files.example.org",
    "https://files.example.org?a=b",
    "https://files.example.org#a",
    "https://files.example.org:port",
    "https://files.example.org:99999",
    "https://files example.org",
    "https://[files",
    "https://f\N{LATIN SMALL LETTER I WITH DIAERESIS}les.example.org",
    "https://files.example.org\n",
]


class Fitting(Section):
    service_url: WebAddress | None = None
    service_key: Annotated[SecretStr | None, needs("service_url", "for else nothing works")] = Field(
        None, validate_default=True
    )


@pytest.mark.parametrize("value", WRONG)
def test_an_invalid_url_is_one_fault_that_does_not_quote_it(value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({"": Fitting}, {"SERVICE_URL": value})
    assert refused.value.faults == ("SERVICE_URL: expected https://host:port",)


def test_a_setting_is_needed_where_the_other_is_set() -> None:
    assert load({"": Fitting}, {})
    assert load({"": Fitting}, {"SERVICE_URL": "http://one", "SERVICE_KEY": "key"})
    assert load({"": Fitting}, {"SERVICE_KEY": "key"})
    with pytest.raises(SettingsError) as refused:
        load({"": Fitting}, {"SERVICE_URL": "http://one"})
    fault = "SERVICE_KEY: missing; required with SERVICE_URL, for else nothing works"
    assert refused.value.faults == (fault,)


def test_only_named_schemes_are_split() -> None:
    assert split_web("http://one/", "https") is None
    assert split_web("https://one:8443/", "https") is not None
