"""Contacts: whom a user has verified, and whom they have blocked."""

from __future__ import annotations

from uuid import UUID

import asyncpg
import peewee

from models.database import Database, Enum, Table
from models.users import User


class UserVerification(Table):
    id = peewee.UUIDField(primary_key=True)
    verifier = peewee.ForeignKeyField(User, on_delete="CASCADE")
    verified_user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    method = peewee.TextField()
    verified_fingerprint = peewee.TextField()
    trust_level = Enum("trust_level", default="unverified")
    notes = peewee.TextField(null=True)
    verified_at = peewee.DateTimeField()

    class Meta:
        table_name = "user_verifications"


class UserBlock(Table):
    blocker = peewee.ForeignKeyField(User, on_delete="CASCADE")
    blocked = peewee.ForeignKeyField(User, on_delete="CASCADE")
    created_at = peewee.DateTimeField()

    class Meta:
        table_name = "user_blocks"
        primary_key = peewee.CompositeKey("blocker", "blocked")


async def verify(
    db: Database, verifier_id: UUID, public_id: str, fingerprint: str, method: str, trust: str, notes: str | None
) -> asyncpg.Record | None:
    """Note that ``verifier_id`` compared the fingerprint of ``public_id``; replaces an earlier note.

    None when that user does not have that fingerprint (or does not exist).
    """
    return await db.row(
        """INSERT INTO user_verifications (verifier_id, verified_user_id, method, verified_fingerprint,
                                          trust_level, notes)
           SELECT $1, id, $4, fingerprint, $5::text::trust_level, $6 FROM users
           WHERE lower(public_id) = lower($2) AND fingerprint = $3
           ON CONFLICT (verifier_id, verified_user_id) DO UPDATE SET
               method = excluded.method, verified_fingerprint = excluded.verified_fingerprint,
               trust_level = excluded.trust_level, notes = excluded.notes, verified_at = now()
           RETURNING id, verified_user_id, method, verified_fingerprint, trust_level::text, notes, verified_at""",
        verifier_id,
        public_id,
        fingerprint,
        method,
        trust,
        notes,
    )
