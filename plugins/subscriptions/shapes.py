"""Requests and responses of ``/subscriptions`` (contract section 4)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints, WithJsonSchema
from typing_extensions import TypedDict

from config.tiers import Allowance, TierName
from handlers.wire.shapes import Hex256, Shape, Signature
from models.database import Row

Sold = Literal["premium", "ultra"]
Method = Literal["stripe", "crypto", "voucher"]


class Purchase(Shape):
    prid_hash: Annotated[
        Hex256,
        Field(description="SHA-256 of the PRID, a random UUID as text with hyphens, in lower (or upper) case."),
    ]
    subscription_tier: Sold
    user_fingerprint: Hex256
    signature: Signature
    payment_proof: Annotated[
        str,
        StringConstraints(min_length=1, max_length=256),
        Field(description="A voucher's code; the id of a PaymentIntent (`pi_…`); the id of a BTCPay invoice."),
    ]
    payment_method: Method


def _uuid(value: str) -> str:
    UUID(value)
    return value


# Kept as it was sent: some apps hash the upper-case text of their systems.
Prid = Annotated[
    str,
    StringConstraints(max_length=64),
    AfterValidator(_uuid),
    WithJsonSchema({"type": "string", "format": "uuid", "description": "A UUID, in lower or upper case."}),
]


class Validation(Shape):
    prid: Prid
    signature: Signature


class Subscription(TypedDict):
    """A subscription at this moment: once it has ended it is ``expired``."""

    subscription_id: UUID
    tier: Sold
    activated_at: datetime
    expires_at: datetime | None
    status: Literal["active", "expired", "cancelled"]


class RestoreItem(Subscription):
    prid_hash: Hex256


class Validity(TypedDict):
    valid: bool
    tier: Sold | None
    expires_at: datetime | None


class Price(TypedDict):
    """``amount`` of ``currency`` (ISO 4217) for ``days`` days."""

    amount: str
    currency: str
    days: int


class TierOffer(TypedDict):
    """``price`` is null for tiers that are not sold for money."""

    tier: TierName
    limits: Allowance
    price: Price | None
    payment_methods: list[Method]


def subscription(row: Row) -> Subscription:
    """Return the response to a purchase."""
    return {
        "subscription_id": row["subscription_id"],
        "tier": row["tier"],
        "activated_at": row["activated_at"],
        "expires_at": row["expires_at"],
        "status": row["status"],
    }


def restored(row: Row) -> RestoreItem:
    return {**subscription(row), "prid_hash": row["prid_hash"]}


class SubscriptionUpdated(Subscription):
    """A subscription as it is now: bought, extended, shortened, expired, or cancelled because its payment was refunded.
    Sent to every socket of its owner."""

    type: Literal["subscription_updated"]


def updated(row: Row) -> SubscriptionUpdated:
    return {"type": "subscription_updated", **subscription(row)}
