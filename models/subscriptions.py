"""Subscriptions: bound to the fingerprint of an identity key, never to a user row (seed: privacy)."""

from __future__ import annotations

import peewee

from models.database import JSONB, Database, Enum, Table


class Subscription(Table):
    id = peewee.UUIDField(primary_key=True)
    prid_hash = peewee.TextField(unique=True)
    user_fingerprint = peewee.TextField()
    tier = Enum("subscription_tier")
    status = Enum("subscription_status", default="active")
    activated_at = peewee.DateTimeField()
    expires_at = peewee.DateTimeField(null=True)
    payment_proof = peewee.TextField(null=True)
    payment_method = peewee.TextField(null=True)
    signature = peewee.BlobField()
    signature_verified = peewee.BooleanField(default=False)
    metadata = JSONB()

    class Meta:
        table_name = "subscriptions"


async def tier(db: Database, fingerprint: str) -> str | None:
    """The best tier that is paid for just now; expiry is judged here, not by a sweep."""
    return await db.value(  # type: ignore[no-any-return]
        """SELECT max(tier)::text FROM subscriptions
           WHERE user_fingerprint = $1 AND status = 'active' AND (expires_at IS NULL OR expires_at > now())""",
        fingerprint,
    )
