"""The doctor's check that our keys may read payments at the payment providers."""

from __future__ import annotations

from collections.abc import AsyncIterator

from config.findings import Examination, Finding, good, skipped, weak, wrong
from handlers.wire.errors import Unavailable
from plugins.subscriptions.payments.crypto import BTCPay
from plugins.subscriptions.payments.stripe import Stripe

STRIPE = "Compare STRIPE_SECRET_KEY with Stripe's page of keys; a restricted one must read PaymentIntents and charges."
BTCPAY = "Compare BTCPAY_STORE_ID and BTCPAY_API_KEY, which needs btcpay.store.canviewinvoices for that store."


def examination(stripe: Stripe | None, btcpay: BTCPay | None) -> Examination:
    async def look() -> AsyncIterator[Finding]:
        yield await _check("stripe", stripe, STRIPE)
        yield await _check("btcpay", btcpay, BTCPAY)

    return Examination("payments", "Payments", ("stripe", "btcpay"), look)


async def _check(part: str, provider: Stripe | BTCPay | None, do: str) -> Finding:
    if provider is None:
        return skipped(part, "Not used: no key is configured.")
    try:
        async with provider.running():
            status = await provider.probe()
    except Unavailable:
        return wrong(part, "It can't be reached in time.", "Check firewalls and DNS; buyers get 503 until then.")
    if status == 404:
        return good(part, "Our key may read payments.")
    if status in (401, 403):
        return wrong(part, f"Our key may not read payments ({status}).", do)
    return weak(part, f"Unexpected response ({status}).", "Check its URL, and try again.")
