"""Prices and providers in the settings: accepted values, and those that keep a server from starting."""

from __future__ import annotations

import re
from typing import Any

import pytest

import server
from config.settings import SettingsError
from plugins.subscriptions.prices import Price
from plugins.subscriptions.settings import Settings
from tests.running import Place

PLACE = Place("postgresql://nowhere/mimu", "redis://nowhere")
STRIPE = {"STRIPE_SECRET_KEY": "rk_test_x", "STRIPE_WEBHOOK_KEY": "whsec_x"}
BTCPAY = {"BTCPAY_BASE_URL": "https://pay.example.org/", "BTCPAY_STORE_ID": "9CiNzKo", "BTCPAY_API_KEY": "a0"}


def read(**given: str) -> Settings:
    found = server.configure({**PLACE.environment, **given}).sections["subscriptions"]
    assert isinstance(found, Settings)
    return found


@pytest.mark.parametrize(
    ("text", "units", "shown"),
    [
        ("4.99 EUR/30 days", 499, {"amount": "4.99", "currency": "EUR", "days": 30}),
        ("5 EUR / 30 days", 500, {"amount": "5.00", "currency": "EUR", "days": 30}),
        ("0.5 USD/day", 50, {"amount": "0.50", "currency": "USD", "days": 1}),
        ("500 JPY/365 days", 500, {"amount": "500", "currency": "JPY", "days": 365}),
        ("1.250 KWD/7 days", 1250, {"amount": "1.250", "currency": "KWD", "days": 7}),
        ("300 ISK/30 days", 30000, {"amount": "300.00", "currency": "ISK", "days": 30}),
        ("0.005 BTC/30 days", None, None),
    ],
)
def test_prices(text: str, units: int | None, shown: Any) -> None:
    if units is None:
        with pytest.raises(ValueError, match="digits"):
            Price.parse(text)
        return
    price = Price.parse(text)
    assert isinstance(price, Price)
    assert (price.units, price.shown()) == (units, shown)


NO_PRICES = """4.99; 4,99 EUR/30 days; 4.99 eur/30 days; 4.999 EUR/30 days; 0 EUR/30 days; 5 EUR/0 days; 5 EUR/month;
-5 EUR/30 days; 1.5 JPY/30 days; 5 EUR/3661 days; ٥ EUR/30 days; 1e9 EUR/30 days; 5 EUR 30 days; 5 EUR/30 days/2"""


@pytest.mark.parametrize("text", re.split(r";\s", NO_PRICES))
def test_an_invalid_price_is_refused(text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read(TIER_PREMIUM_PRICE=text)
    [fault] = refused.value.faults
    assert fault.startswith("TIER_PREMIUM_PRICE: ")


def test_complete_settings_are_accepted() -> None:
    assert read().prices == {}
    assert list(read(TIER_ULTRA_PRICE="9 EUR/30 days").prices) == ["ultra"], "without a provider it is only shown"
    given = read(**STRIPE, **BTCPAY, TIER_PREMIUM_PRICE="5 EUR/30 days", TIER_ULTRA_PRICE="5 USD/30 days")
    assert list(given.prices) == ["premium", "ultra"]
    assert given.btcpay_base_url == "https://pay.example.org"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"STRIPE_SECRET_KEY": "rk", "TIER_PREMIUM_PRICE": "5 EUR/day"}, ["STRIPE_WEBHOOK_KEY"]),
        (STRIPE, ["TIER_ULTRA_PRICE"]),
        ({"BTCPAY_BASE_URL": "https://h"}, ["BTCPAY_STORE_ID", "BTCPAY_API_KEY", "TIER_ULTRA_PRICE"]),
        ({**BTCPAY, "BTCPAY_BASE_URL": "ftp://h"}, ["BTCPAY_BASE_URL"]),
        ({**BTCPAY, "BTCPAY_BASE_URL": "https://u:p@h", "TIER_ULTRA_PRICE": "5 EUR/day"}, ["BTCPAY_BASE_URL"]),
        ({**BTCPAY, "BTCPAY_STORE_ID": "../x", "TIER_ULTRA_PRICE": "5 EUR/day"}, ["BTCPAY_STORE_ID"]),
        ({**STRIPE, "TIER_PREMIUM_PRICE": "5 EUR/day", "TIER_ULTRA_PRICE": "5.00 EUR/30 days"}, ["TIER_ULTRA_PRICE"]),
        ({"PAYMENT_TIMEOUT_SECONDS": "0"}, ["PAYMENT_TIMEOUT_SECONDS"]),
        ({"PAYMENT_TIMEOUT_SECONDS": "60"}, ["PAYMENT_TIMEOUT_SECONDS"]),
    ],
)
def test_incomplete_settings_keep_the_server_from_starting(given: dict[str, str], names: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        read(**given)
    assert [fault.partition(":")[0] for fault in refused.value.faults] == names
    assert not any(value in fault for fault in refused.value.faults for value in given.values() if len(value) > 8)
