"""Errors of purchases and webhooks."""

from __future__ import annotations

from handlers.wire.errors import ApiError, Forbidden


class InvalidSignature(Forbidden):
    """A purchase that the fingerprint's owner did not sign, or of an unknown fingerprint; a webhook that Stripe did not
    sign."""

    code, message = "invalid_signature", "The signature was not made with the owner's key."


class PaymentRequired(ApiError):
    """The proof shows no payment of that tier's price: unknown, pending, of another amount or tier, or refunded; one
    error for all."""

    status, code, message = 402, "payment_required", "This proof shows no payment of this tier's price."


class PaymentMethodUnavailable(ApiError):
    """This server does not sell that tier by that payment method."""

    status, code, message = 422, "payment_method_unavailable", "This tier is not sold by this payment method."
