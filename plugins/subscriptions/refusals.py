"""What a purchase may be refused for."""

from __future__ import annotations

from handlers.wire.errors import ApiError, Forbidden


class InvalidSignature(Forbidden):
    """A purchase that the fingerprint's owner did not sign, or of an unknown fingerprint; a webhook that Stripe did not
    sign."""

    code, message = "invalid_signature", "The signature is not that of the owner's key."


class PaymentRequired(ApiError):
    """What proves a payment proves none of that tier's price: unknown, not through yet, of another amount or tier,
    taken back; one answer for all."""

    status, code, message = 402, "payment_required", "No payment of this tier's price is proven by that."


class PaymentMethodUnavailable(ApiError):
    """This server does not sell that tier that way."""

    status, code, message = 422, "payment_method_unavailable", "This server does not sell this tier that way."
