"""Settings of subscriptions: prices, and the providers that confirm payments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator

from config.settings import Rate, RateLimit
from config.tiers import TierSettings
from plugins.subscriptions.prices import Price, PriceTag


def _base(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in value:
        raise ValueError("expected https://host:port")
    return value.rstrip("/")


BaseUrl = Annotated[str, AfterValidator(_base)]


class Settings(TierSettings):
    stripe_secret_key: SecretStr | None = Field(
        None,
        description="Stripe's secret or restricted key that may read PaymentIntents and charges; unset: no Stripe.",
    )
    stripe_webhook_key: SecretStr | None = Field(
        None, validate_default=True, description="Signing secret (whsec_…) of the webhook that reports refunds."
    )
    stripe_base_url: BaseUrl | None = Field(None, description="Another URL than Stripe's, for tests.")
    btcpay_base_url: BaseUrl | None = Field(None, description="A BTCPay Server; unset: no cryptocurrencies.")
    btcpay_store_id: str | None = Field(
        None,
        validate_default=True,
        pattern=r"^[A-Za-z0-9]{1,64}$",
        description="The store whose invoices count.",
    )
    btcpay_api_key: SecretStr | None = Field(
        None, validate_default=True, description="Its API key, with btcpay.store.canviewinvoices for that store."
    )
    payment_timeout_seconds: float = Field(
        2.5, gt=0, le=30, description="Time limit for a payment provider, with a second try; then 503."
    )
    tier_premium_price: PriceTag | None = Field(
        None, description="Price of premium by Stripe or BTCPay, as 4.99 EUR/30 days; unset: only vouchers buy it."
    )
    tier_ultra_price: PriceTag | None = Field(
        None, validate_default=True, description="Price of ultra; must differ from premium's."
    )
    rate_limit_purchase: RateLimit = Field(Rate(20, 3600), description="Purchases tried, an address.")
    rate_limit_validate: RateLimit = Field(Rate(60, 60), description="Subscriptions validated, an address.")

    @field_validator("stripe_webhook_key")
    @classmethod
    def _require_webhook_key(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None and info.data.get("stripe_secret_key"):
            raise ValueError("missing; STRIPE_SECRET_KEY needs it, otherwise refunds go unnoticed")
        return value

    @field_validator("btcpay_store_id", "btcpay_api_key")
    @classmethod
    def _require_all_of_btcpay(cls, value: str | SecretStr | None, info: ValidationInfo) -> str | SecretStr | None:
        if value is None and info.data.get("btcpay_base_url"):
            raise ValueError("missing; BTCPAY_BASE_URL needs it")
        return value

    @field_validator("tier_ultra_price")
    @classmethod
    def _distinct_prices(cls, value: Price | None, info: ValidationInfo) -> Price | None:
        premium: Price | None = info.data.get("tier_premium_price")
        providers = info.data.get("stripe_secret_key") or info.data.get("btcpay_base_url")
        if providers and value is None and premium is None and "tier_premium_price" in info.data:
            raise ValueError("missing, and so is TIER_PREMIUM_PRICE; there is nothing to sell")
        if value and premium and (value.amount, value.currency) == (premium.amount, premium.currency):
            raise ValueError("is TIER_PREMIUM_PRICE; the amount of a payment must show its tier")
        return value

    @property
    def prices(self) -> Mapping[str, Price]:
        """The price of each tier that is sold for money."""
        prices = {"premium": self.tier_premium_price, "ultra": self.tier_ultra_price}
        return {tier: price for tier, price in prices.items() if price is not None}
