"""What a purchase may be refused for."""

from __future__ import annotations

from handlers.wire.errors import ApiError, Forbidden


class InvalidSignature(Forbidden):
    code, message = "invalid_signature", "The signature is not that of the owner's key."


class PaymentRequired(ApiError):
    """One answer for whatever is not this tier paid for: an unknown payment, one that is under way, of another amount,
    of another tier, taken back."""

    status, code, message = 402, "payment_required", "No payment of this tier's price is proven by that."


class PaymentMethodUnavailable(ApiError):
    status, code, message = 422, "payment_method_unavailable", "This server does not sell this tier that way."
