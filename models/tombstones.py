"""Tombstones: names and keys of erased accounts, which can't be registered again for a while.

Another user with the public id of an erased account would be found, invited and written to in its place. A public
identity key proves nothing: everyone who fetched a bundle has it, and could register it with the fingerprint that
contacts have verified.

The signed prekeys of an erased account are here, too, until its last subscription ends: every bundle contained their
signatures, so they prove nothing, either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from uuid import UUID

import peewee
from peewee import fn

from models.database import Database, Table, any_of

DAYS = 180  # contract section 2


class Tombstone(Table):
    hash = peewee.BlobField(primary_key=True)
    until = peewee.DateTimeField()

    class Meta:
        table_name = "tombstones"


_NAME, _IDENTITY, _PREKEY = "mimu-name-v1|", "mimu-identity-v1|", "mimu-prekey-v1|"


def of_name(public_id: str) -> bytes:
    return hashlib.sha256(f"{_NAME}{public_id.lower()}".encode()).digest()


def of_identity(identity_key: bytes) -> bytes:
    return hashlib.sha256(_IDENTITY.encode() + identity_key).digest()


def of_prekey(public_key: bytes) -> bytes:
    return hashlib.sha256(_PREKEY.encode() + public_key).digest()


PREKEY_HASH = f"sha256('{_PREKEY}'::bytea || public_key)"  # SQL: of_prekey

_BURY = f"""
INSERT INTO tombstones (hash, until)
SELECT hash, max(until) FROM (
    SELECT sha256(convert_to('{_NAME}' || lower(public_id), 'UTF8')) AS hash, now() + interval '{DAYS} days' AS until
    FROM users WHERE id = $1
    UNION ALL
    SELECT sha256('{_IDENTITY}'::bytea || identity_key), now() + interval '{DAYS} days' FROM users WHERE id = $1
    UNION ALL
    SELECT prekeys.hash, greatest(now() + interval '{DAYS} days', (
        SELECT max(coalesce(expires_at, 'infinity')) FROM subscriptions
        WHERE user_fingerprint = (SELECT fingerprint FROM users WHERE id = $1)
    ))
    FROM (
        SELECT {PREKEY_HASH} AS hash FROM signed_prekeys WHERE user_id = $1
        UNION ALL SELECT key_hash FROM superseded_prekeys WHERE user_id = $1
    ) AS prekeys
) AS buried
GROUP BY hash ORDER BY hash
ON CONFLICT (hash) DO UPDATE SET until = greatest(tombstones.until, excluded.until)
"""


async def bury(db: Database, user_id: UUID) -> None:
    """Store the name and keys of an account, in the transaction that erases it, before the deletion."""
    await db.execute(_BURY, user_id)


async def buried(db: Database, hashes: Sequence[bytes]) -> set[bytes]:
    """Return those of the hashes that still have a tombstone.

    Call it after the account was inserted: an insertion that conflicts with the old account waits for its erasure, and
    only then the tombstone is visible.
    """
    rows = await db.rows(
        Tombstone.select(Tombstone.hash).where(any_of(Tombstone.hash, hashes), Tombstone.until > fn.now())
    )
    return {row["hash"] for row in rows}
