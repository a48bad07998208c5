"""Settings of subscriptions: prices, and the providers that confirm payments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, SecretStr, StringConstraints, ValidationInfo, field_validator

from config.tiers import TierSettings
from config.values import Rate, RateLimit, WebAddress, needs
from plugins.subscriptions.prices import Price, PriceTag

StoreId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]{1,64}$")]


class Settings(TierSettings):
    stripe_secret_key: SecretStr | None = Field(
        None,
        description="Secret key of Stripe; better a restricted one that may read PaymentIntents and charges. "
        "Unset: no Stripe.",
    )
    stripe_webhook_key: Annotated[SecretStr | None, needs("stripe_secret_key", "else refunds are missed")] = Field(
        None,
        validate_default=True,
        description="Signing secret (whsec_...) of the webhook to /subscriptions/webhooks/stripe, which reports "
        "refunds and disputes. Required with STRIPE_SECRET_KEY.",
    )
    stripe_base_url: WebAddress | None = Field(
        None, description="Another address in place of Stripe's own, for tests. Unset: Stripe's."
    )
    btcpay_base_url: WebAddress | None = Field(
        None, description="BTCPay Server: https://btcpay.example.org. Unset: no cryptocurrencies."
    )
    btcpay_store_id: Annotated[StoreId | None, needs("btcpay_base_url")] = Field(
        None,
        validate_default=True,
        description="Store of BTCPay whose invoices count. Required with BTCPAY_BASE_URL.",
    )
    btcpay_api_key: Annotated[SecretStr | None, needs("btcpay_base_url")] = Field(
        None,
        validate_default=True,
        description="API key of BTCPay with btcpay.store.canviewinvoices for that store only. Required with "
        "BTCPAY_BASE_URL.",
    )
    payment_timeout_seconds: float = Field(
        2.5,
        gt=0,
        le=30,
        description="Seconds that a payment provider has to answer, with a second attempt; then the client gets "
        "503. Raise it if yours is slow.",
    )
    tier_premium_price: PriceTag | None = Field(
        None,
        description="Price of premium through Stripe or BTCPay, such as 4.99 EUR/30 days. Unset: only vouchers buy it.",
    )
    tier_ultra_price: PriceTag | None = Field(
        None,
        validate_default=True,
        description="Price of ultra, another amount than that of premium: the amount tells them apart. Unset: "
        "only vouchers buy it.",
    )
    rate_limit_purchase: RateLimit = Field(Rate(20, 3600), description="Attempts per IP address to buy a subscription.")
    rate_limit_validate: RateLimit = Field(Rate(60, 60), description="Subscriptions validated per IP address.")

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
