"""What the doctor asks of who took the money: whether they let our keys ask for payments."""

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
        yield await _asked("stripe", stripe, STRIPE)
        yield await _asked("btcpay", btcpay, BTCPAY)

    return Examination("payments", "Payments", ("stripe", "btcpay"), look)


async def _asked(part: str, provider: Stripe | BTCPay | None, do: str) -> Finding:
    if provider is None:
        return skipped(part, "It has no key, and is not used.")
    try:
        async with provider.running():
            status = await provider.standing()
    except Unavailable:
        return wrong(part, "It can't be reached in time.", "See firewalls and DNS; buyers are told 503 meanwhile.")
    if status == 404:
        return good(part, "It lets us ask for payments.")
    if status in (401, 403):
        return wrong(part, f"It does not let us ask for payments ({status}).", do)
    return weak(part, f"It gave an odd answer ({status}).", "See whether that is its address, and ask again.")
