"""What clients send to ``/subscriptions`` (contract section 4), and what they get."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import StringConstraints

from handlers.shapes import Hex256, Id, Shape, Signature
from models.database import Row


class Purchase(Shape):
    prid_hash: Hex256
    subscription_tier: Literal["premium", "ultra"]
    user_fingerprint: Hex256
    signature: Signature
    payment_proof: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    payment_method: Literal["stripe", "crypto", "voucher"]


class Validation(Shape):
    prid: Id
    signature: Signature


def subscription(row: Row) -> dict[str, Any]:
    """What a purchase answers."""
    return {name: row[name] for name in ("subscription_id", "tier", "activated_at", "expires_at", "status")}


def restored(row: Row) -> dict[str, Any]:
    """RestoreItem."""
    return {**subscription(row), "prid_hash": row["prid_hash"]}


def updated(row: Row) -> dict[str, Any]:
    """The frame for the owner's sockets."""
    return {"type": "subscription_updated", **subscription(row)}
