"""Subscriptions: tiers that users buy anonymously by voucher, Stripe or BTCPay (contract section 4)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from config.findings import Examination
from config.settings import Core
from models.subscriptions import BATCH, ENDED
from models.sweeps import Sweep, Sweeper
from plugins import App, Every, Plugin
from plugins.subscriptions import examination, http
from plugins.subscriptions.payments import Provider
from plugins.subscriptions.payments.crypto import BTCPay
from plugins.subscriptions.payments.stripe import Stripe
from plugins.subscriptions.payments.voucher import Voucher
from plugins.subscriptions.settings import Settings
from plugins.subscriptions.shapes import SubscriptionUpdated
from plugins.subscriptions.subscriptions import Subscriptions

__all__ = ["Settings", "examine", "setup"]

RUN_SECONDS = 10.0  # for one run; the next one continues


def setup(app: App, settings: Settings) -> Plugin:
    providers: dict[str, Provider] = {"voucher": Voucher(app.db)}
    stripe = _stripe(settings)
    if stripe is not None:
        providers["stripe"] = stripe
    crypto = _crypto(settings)
    if crypto is not None:
        providers["crypto"] = crypto
    subscriptions = Subscriptions(app.db, app.hub, providers, settings.tiers, settings.prices)

    expiry = Sweeper(app.db, app.sweeps, Sweep(ENDED, subscriptions.expire, BATCH))

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for provider in providers.values():
                await stack.enter_async_context(provider.running())
            yield

    shared = {"subscriptions": subscriptions}
    return Plugin(
        name="subscriptions",
        guide="subscriptions.md",
        routes=(
            ("/subscriptions/tiers", http.Offers, shared),
            ("/subscriptions/purchase", http.Purchases, {**shared, "rate": settings.rate_limit_purchase}),
            ("/subscriptions/restore", http.Restore, shared),
            ("/subscriptions/validate", http.Validations, {**shared, "rate": settings.rate_limit_validate}),
            ("/subscriptions/webhooks/stripe", http.StripeWebhook, {**shared, "stripe": stripe}),
        ),
        sends=(SubscriptionUpdated,),
        periodic=(Every(30, lambda: expiry.run(RUN_SECONDS), "subscriptions"),),
        lifespan=lifespan,
    )


def examine(_: Core, settings: Settings) -> Examination:
    """Return the doctor's check that the payment providers accept our keys."""
    return examination.examination(_stripe(settings), _crypto(settings))


def _stripe(settings: Settings) -> Stripe | None:
    key, webhook_key = settings.stripe_secret_key, settings.stripe_webhook_key
    if key is None or webhook_key is None:
        return None
    return Stripe(
        key.get_secret_value(),
        webhook_key.get_secret_value(),
        settings.stripe_base_url,
        settings.prices,
        settings.payment_timeout_seconds,
    )


def _crypto(settings: Settings) -> BTCPay | None:
    url, store, key = settings.btcpay_base_url, settings.btcpay_store_id, settings.btcpay_api_key
    if url is None or store is None or key is None:
        return None
    return BTCPay(url, store, key.get_secret_value(), settings.prices, settings.payment_timeout_seconds)
