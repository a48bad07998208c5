"""Contacts: the users that a user has verified, blocked, written to or called."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import peewee
from peewee import Tuple

from models.chats import concealment, invitations
from models.chats.events import Change
from models.database import Database, Enum, Row, Table
from models.users import User

MAX_BLOCKS = 10_000  # only scripts make longer lists, and every block is a row to look up


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


class UserContact(Table):
    """``user`` has written to ``contact`` in a private chat or accepted one, called them, or answered their call. A
    trigger stores the contact for messages, models/calls.py for calls."""

    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    contact = peewee.ForeignKeyField(User, on_delete="CASCADE")
    created_at = peewee.DateTimeField()

    class Meta:
        table_name = "user_contacts"
        primary_key = peewee.CompositeKey("user", "contact")


async def verify(
    db: Database, verifier_id: UUID, verified_id: UUID, fingerprint: str, method: str, trust: str, notes: str | None
) -> Row | None:
    """Mark a contact's fingerprint as verified; replaces an earlier verification.

    Returns None if the contact does not have that fingerprint (any more).
    """
    return await db.row(
        """WITH noted AS (
               INSERT INTO user_verifications (verifier_id, verified_user_id, method, verified_fingerprint,
                                               trust_level, notes)
               SELECT $1, id, $4, fingerprint, $5::text::trust_level, $6 FROM users WHERE id = $2 AND fingerprint = $3
               ON CONFLICT (verifier_id, verified_user_id) DO UPDATE SET
                   method = excluded.method, verified_fingerprint = excluded.verified_fingerprint,
                   trust_level = excluded.trust_level, notes = excluded.notes, verified_at = now()
               RETURNING *
           )
           SELECT noted.id, verified_user_id, public_id, method, verified_fingerprint, trust_level::text, notes,
                  verified_at
           FROM noted JOIN users ON users.id = verified_user_id""",
        verifier_id,
        verified_id,
        fingerprint,
        method,
        trust,
        notes,
    )


async def unverify(db: Database, verifier_id: UUID, verified_id: UUID) -> bool:
    verification = (UserVerification.verifier == verifier_id, UserVerification.verified_user == verified_id)
    return await db.do(UserVerification.delete().where(*verification)) == 1


async def verifications(db: Database, verifier_id: UUID, limit: int, before: tuple[datetime, UUID] | None) -> list[Row]:
    """Return a user's verifications with the contacts' public ids, the latest first."""
    page = (
        UserVerification.select(
            UserVerification.id,
            UserVerification.verified_user,
            User.public_id,
            UserVerification.method,
            UserVerification.verified_fingerprint,
            UserVerification.trust_level.label,
            UserVerification.notes,
            UserVerification.verified_at,
        )
        .join(User, on=(User.id == UserVerification.verified_user))
        .where(UserVerification.verifier == verifier_id)
        .order_by(UserVerification.verified_at.desc(), UserVerification.id.desc())
        .limit(limit)
    )
    if before:
        page = page.where(Tuple(UserVerification.verified_at, UserVerification.id) < before)
    return await db.rows(page)


async def note_partner(change: Change) -> None:
    """Store the other participant of a locked private chat as a contact of the user, who has accepted the chat."""
    await change.db.execute(
        """INSERT INTO user_contacts (user_id, contact_id)
           SELECT $2, user_id FROM chat_participants WHERE chat_id = $1 AND user_id <> $2
           ON CONFLICT DO NOTHING""",
        change.chat_id,
        change.user_id,
    )


async def block(db: Database, blocker_id: UUID, blocked_id: UUID, at_most: int) -> list[UUID] | None:
    """Block a user. Returns the chats that are hidden from the blocker now; None if there would be more than
    ``at_most`` blocks. Repeating changes nothing."""
    async with db.transaction():
        await concealment.lock_pair(db, blocker_id, blocked_id)
        blocked = await db.value(
            """WITH added AS (
                   INSERT INTO user_blocks (blocker_id, blocked_id) SELECT $1, $2
                   WHERE (SELECT count(*) FROM user_blocks WHERE blocker_id = $1) < $3
                   ON CONFLICT DO NOTHING RETURNING 1
               )
               SELECT EXISTS (SELECT 1 FROM added)
                   OR EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = $1 AND blocked_id = $2)""",
            blocker_id,
            blocked_id,
            at_most,
        )
        if not blocked:
            return None
        concealed = await concealment.conceal_pair(db, blocker_id, blocked_id)
        return [*concealed, *await invitations.decline_from(db, blocker_id, blocked_id)]


async def unblock(db: Database, blocker_id: UUID, blocked_id: UUID) -> bool:
    block = (UserBlock.blocker == blocker_id, UserBlock.blocked == blocked_id)
    async with db.transaction():
        await concealment.lock_pair(db, blocker_id, blocked_id)
        removed = await db.do(UserBlock.delete().where(*block)) == 1
        if removed:
            await concealment.reveal_pair(db, blocker_id, blocked_id)
        return removed


async def blocks(db: Database, blocker_id: UUID, limit: int, before: tuple[datetime, UUID] | None) -> list[Row]:
    """Return a user's blocks, the latest first: ``user_id, public_id, display_name, blocked_at``."""
    page = (
        UserBlock.select(
            User.id.alias("user_id"), User.public_id, User.display_name, UserBlock.created_at.alias("blocked_at")
        )
        .join(User, on=(User.id == UserBlock.blocked))
        .where(UserBlock.blocker == blocker_id)
        .order_by(UserBlock.created_at.desc(), UserBlock.blocked.desc())
        .limit(limit)
    )
    if before:
        page = page.where(Tuple(UserBlock.created_at, UserBlock.blocked) < before)
    return await db.rows(page)
