"""Subscriptions: bound to the fingerprint of an identity key, never to a user row (seed: privacy)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import asyncpg
import peewee

from config.tiers import TierName
from models.database import JSONB, Database, Enum, Row, Table
from models.sweeps import Due
from models.users import User

BATCH = 500  # subscriptions that one statement marks as expired


class Subscription(Table):
    id = peewee.UUIDField(primary_key=True)
    prid_hash = peewee.TextField(unique=True)
    user_fingerprint = peewee.TextField()
    tier = Enum("subscription_tier")
    status = Enum("subscription_status", default="active")
    activated_at = peewee.DateTimeField()
    starts_at = peewee.DateTimeField()
    expires_at = peewee.DateTimeField(null=True)
    payment_proof = peewee.TextField(null=True, unique=True)
    payment_method = peewee.TextField(null=True)
    signature = peewee.BlobField()
    signature_verified = peewee.BooleanField(default=False)
    metadata = JSONB()

    class Meta:
        table_name = "subscriptions"


class SpentProof(Table):
    """A payment that was used or refunded, and can't buy anything."""

    proof_hash = peewee.TextField(primary_key=True)

    class Meta:
        table_name = "spent_proofs"


class Purchase(NamedTuple):
    """A purchase and its payment. ``signature`` is the owner's; the caller has checked it."""

    prid_hash: str
    fingerprint: str
    tier: str
    signature: bytes
    method: str
    proof_hash: str


def proof_hash(method: str, proof: str) -> str:
    """Return the stored hash of a payment's proof, in hex. No salt: a proof has at least 80 random bits."""
    return hashlib.sha256(f"mimu-proof-v1|{method}|{proof}".encode()).hexdigest()


# A reader computes expiry here; a sweep updates the stored status later.
_STATUS = "CASE WHEN s.status = 'active' AND s.expires_at <= now() THEN 'expired' ELSE s.status::text END AS status"
_SHOWN = f"s.id AS subscription_id, s.prid_hash, s.tier::text, {_STATUS}, s.activated_at, s.expires_at"
# Without subscriptions of a former owner of the fingerprint, unless the present one has proven to be the buyer.
_THEIRS = "NOT s.metadata ? 'withheld'"
_LIVE = f"s.status = 'active' AND (s.expires_at IS NULL OR s.expires_at > now()) AND {_THEIRS}"

# The user to notify of a change, looked up when it happens: this link is not stored.
_OWNER = f"(SELECT users.id FROM users WHERE users.fingerprint = s.user_fingerprint AND {_THEIRS}) AS owner"

# A purchase in one statement, all or nothing. It also uses up a voucher; of 50 concurrent purchases one succeeds.
_BUY = f"""
WITH voucher AS (
    UPDATE vouchers SET used_at = now()
    WHERE $5 = 'voucher' AND proof_hash = $6 AND tier = $3::subscription_tier
        AND used_at IS NULL AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
    RETURNING days
), paid AS (
    SELECT days FROM voucher UNION ALL SELECT $7::integer WHERE $5 <> 'voucher'
), spent AS (
    INSERT INTO spent_proofs (proof_hash) SELECT $6 FROM paid ON CONFLICT DO NOTHING RETURNING 1
), since AS (
    SELECT greatest(now(), max(expires_at)) AS moment FROM subscriptions AS s
    WHERE user_fingerprint = $2 AND tier = $3::subscription_tier AND status = 'active' AND {_THEIRS}
), bought AS (
    INSERT INTO subscriptions (prid_hash, user_fingerprint, tier, signature, signature_verified, payment_method,
                               payment_proof, starts_at, expires_at)
    SELECT $1, $2, $3::subscription_tier, $4, true, $5, $6, moment, moment + make_interval(days => days)
    FROM paid, spent, since RETURNING *
)
SELECT {_SHOWN}, {_OWNER} FROM bought AS s
"""

# A renewal that begins after the cancelled time moves forward by the remaining cancelled time: otherwise the user would
# keep the refunded time.
_CANCEL = f"""
WITH cancelled AS (
    UPDATE subscriptions SET status = 'cancelled' WHERE payment_proof = $1 AND status <> 'cancelled' RETURNING *
), lost AS (
    SELECT user_fingerprint, tier, expires_at, expires_at - greatest(now(), starts_at) AS time FROM cancelled
), moved AS (
    UPDATE subscriptions AS later SET starts_at = later.starts_at - time, expires_at = later.expires_at - time
    FROM lost
    WHERE later.user_fingerprint = lost.user_fingerprint AND later.tier = lost.tier AND later.status = 'active'
        AND later.starts_at >= lost.expires_at AND time > interval '0'
    RETURNING later.*
)
SELECT {_SHOWN}, {_OWNER} FROM (SELECT * FROM cancelled UNION ALL SELECT * FROM moved) AS s
"""

ENDED = Due("subscriptions_expiry", "id", "subscriptions WHERE status = 'active' AND expires_at <= now()", "expires_at")

_EXPIRE = f"""
WITH due AS (
    {ENDED.batch}
), expired AS (
    UPDATE subscriptions SET status = 'expired' WHERE id IN (SELECT id FROM due) RETURNING *
)
SELECT {_SHOWN}, {_OWNER} FROM expired AS s
"""


async def _lock(db: Database, fingerprint: str) -> None:
    """Serialize changes to the subscriptions of one fingerprint: a renewal begins where the last one ends."""
    await db.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", fingerprint)


async def tier(db: Database, fingerprint: str) -> TierName | None:
    """Return the best tier that is paid for now; None if there is none."""
    return await db.value(  # type: ignore[no-any-return]
        f"SELECT max(tier)::text FROM subscriptions s WHERE user_fingerprint = $1 AND {_LIVE}", fingerprint
    )


async def signing_key(db: Database, fingerprint: str) -> bytes | None:
    """Return the signing key of the user with that fingerprint."""
    return await db.scalar(  # type: ignore[no-any-return]
        User.select(User.signing_public_key).where(User.fingerprint == fingerprint)
    )


async def clashing(db: Database, purchase: Purchase) -> list[Row]:
    """Return the subscriptions with that PRID or payment, each with ``same``: true if it is of this same purchase."""
    return await db.fetch(
        f"""SELECT {_SHOWN}, (prid_hash = $1 AND user_fingerprint = $2 AND tier = $3::subscription_tier
                              AND payment_method = $4 AND payment_proof = $5) AS same
            FROM subscriptions s WHERE prid_hash = $1 OR payment_proof = $5""",
        purchase.prid_hash,
        purchase.fingerprint,
        purchase.tier,
        purchase.method,
        purchase.proof_hash,
    )


async def buy(db: Database, purchase: Purchase, days: int) -> Row | None:
    """Store a purchase. Returns the subscription with its ``owner`` (the id of the user to notify). It begins now, or
    when the owner's subscription of that tier ends. None if the payment or the PRID was used in the meantime, or the
    voucher is no longer valid."""
    try:
        async with db.transaction():
            await _lock(db, purchase.fingerprint)
            return await db.row(_BUY, *purchase, days)
    except asyncpg.UniqueViolationError:
        return None  # the PRID; the use of the payment is rolled back


async def cancel(db: Database, proof_hash: str) -> list[Row]:
    """Cancel the subscription of a payment, and make the payment unusable. Returns each changed subscription with its
    ``owner``."""
    async with db.transaction():
        # First of all: a concurrent purchase with this payment has committed, or will find it spent.
        await db.do(SpentProof.insert(proof_hash=proof_hash).on_conflict_ignore())
        fingerprint = await db.scalar(
            Subscription.select(Subscription.user_fingerprint).where(Subscription.payment_proof == proof_hash)
        )
        if fingerprint is None:
            return []
        await _lock(db, fingerprint)
        return await db.fetch(_CANCEL, proof_hash)


async def expire(db: Database, limit: int = BATCH) -> list[Row]:
    """Mark at most ``limit`` ended subscriptions as expired; only one server gets each. Returns them with ``owner``."""
    return await db.fetch(_EXPIRE, limit)


async def bought_before(db: Database, fingerprint: str) -> list[Row]:
    """Return ``id, prid_hash, tier, signature`` of each subscription of a fingerprint."""
    return await db.rows(
        Subscription.select(
            Subscription.id, Subscription.prid_hash, Subscription.tier.label, Subscription.signature
        ).where(Subscription.user_fingerprint == fingerprint)
    )


async def withhold(db: Database, fingerprint: str, withheld: Sequence[UUID]) -> None:
    """Withhold these subscriptions from the present owner of the fingerprint, and release all others of it."""
    await db.execute(
        """UPDATE subscriptions SET metadata = metadata - 'withheld'
               || CASE WHEN id = ANY ($2::uuid[]) THEN '{"withheld": true}'::jsonb ELSE '{}' END
           WHERE user_fingerprint = $1""",
        fingerprint,
        list(withheld),
    )


MAX_LISTED = 1000  # 400 KB; more than any user has


async def live(db: Database, fingerprint: str) -> list[Row]:
    """Return the current subscriptions of a fingerprint, the latest first, at most MAX_LISTED."""
    return await db.fetch(
        f"""SELECT {_SHOWN} FROM subscriptions s WHERE s.user_fingerprint = $1 AND {_LIVE}
            ORDER BY s.activated_at DESC, s.id LIMIT {MAX_LISTED}""",
        fingerprint,
    )


async def of_prid(db: Database, prid_hashes: Sequence[str]) -> Row | None:
    """Return a current subscription of one of these PRIDs, with its owner's ``signing_public_key``."""
    return await db.row(
        f"""SELECT {_SHOWN}, users.signing_public_key
            FROM subscriptions s JOIN users ON users.fingerprint = s.user_fingerprint
            WHERE s.prid_hash = ANY ($1::text[]) AND {_LIVE} LIMIT 1""",
        list(prid_hashes),
    )
