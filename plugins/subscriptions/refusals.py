"""Errors of purchases and webhooks."""

from __future__ import annotations

from handlers.wire.errors import ApiError, Forbidden


class InvalidSignature(Forbidden):
    code, message = "invalid_signature", "The signature was not made with the owner's key."


class PaymentRequired(ApiError):
    """The same error for every payment that does not pay for the tier: unknown, pending, of another amount or tier, or
    refunded."""

    status, code, message = 402, "payment_required", "This proof shows no payment of this tier's price."


class PaymentMethodUnavailable(ApiError):
    status, code, message = (
        422,
        "payment_method_unavailable",
        "This tier is not sold by this payment method.",
    )
