"""Whole accounts: erase them, and the operators' commands, each with its line in the audit log."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from peewee import fn

from models import audit, sessions, users
from models.chats import messages, participants
from models.chats.changes import ChatChanges, announce_nothing
from models.chats.tables import ChatParticipant
from models.database import Database, Row
from models.sessions import Session
from models.users import User


async def find(db: Database, public_id: str) -> Row | None:
    """Return ``id, public_id, created_at, is_online, last_seen, suspended_at``, and ``endable``: the number of sessions
    that are not revoked."""
    live = Session.select(fn.count(Session.id)).where(Session.user == User.id, Session.revoked_at.is_null())
    return await db.one(
        User.select(
            User.id,
            User.public_id,
            User.created_at,
            User.is_online,
            User.last_seen,
            User.suspended_at,
            live.alias("endable"),
        ).where(users.named(public_id))
    )


class Change(NamedTuple):
    """True if the account was changed (and audited), and the sessions that ended: announce them to the servers."""

    changed: bool
    ended: list[sessions.Ended]


async def _lock(db: Database, user_id: UUID) -> Row | None:
    """Lock the account's row before all that changes with it. A login at the same time waits and then sees the change,
    or comes first and is included in it."""
    return await db.row("SELECT public_id, suspended_at FROM users WHERE id = $1 FOR UPDATE", user_id)


async def suspend(db: Database, user_id: UUID, actor: str) -> Change | None:
    """Suspend an account, and end its sessions; None if it is gone."""
    async with db.transaction():
        account = await _lock(db, user_id)
        if account is None:
            return None
        suspended = await db.do(
            User.update(suspended_at=fn.now()).where(User.id == user_id, User.suspended_at.is_null())
        )
        ended = await sessions.end_all(db, user_id)
        if suspended or ended:
            await audit.note(db, actor, "suspend", user_id, account["public_id"])
        return Change(bool(suspended or ended), ended)


async def unsuspend(db: Database, user_id: UUID, actor: str) -> Change | None:
    """Let an account sign in again; None if it is gone. Its former sessions stay ended."""
    async with db.transaction():
        account = await _lock(db, user_id)
        if account is None:
            return None
        changed = await db.do(
            User.update(suspended_at=None).where(User.id == user_id, User.suspended_at.is_null(False))
        )
        if changed:
            await audit.note(db, actor, "unsuspend", user_id, account["public_id"])
        return Change(bool(changed), [])


async def end_sessions(db: Database, user_id: UUID, actor: str) -> Change | None:
    """End all sessions of an account; None if it is gone."""
    async with db.transaction():
        account = await _lock(db, user_id)
        if account is None:
            return None
        ended = await sessions.end_all(db, user_id)
        if ended:
            await audit.note(db, actor, "end-sessions", user_id, account["public_id"])
        return Change(bool(ended), ended)


async def delete(db: Database, user_id: UUID, actor: str) -> Change | None:
    """Erase an account, as its owner can; None if it is gone."""
    ended = await erase(ChatChanges(db, announce_nothing), user_id, actor)
    return None if ended is None else Change(True, ended)


async def erase(changes: ChatChanges, user_id: UUID, actor: str | None = None) -> list[sessions.Ended] | None:
    """Erase an account with all its data (contract section 10). Returns the sessions that ended; None if it is gone.
    With an ``actor`` it writes a line to the audit log.

    It leaves its chats first, one by one, because chats are locked before accounts everywhere; then it removes the
    sender from its messages in batches. After a crash in between the account can still be erased. At the end its row is
    locked: a session that opens at the same time ends with the others, or does not open.
    """
    db = changes.db
    while True:
        await participants.remove_from_all(changes, user_id)
        await messages.forget_sender(db, user_id)
        async with db.transaction():
            account = await _lock(db, user_id)
            if account is None:
                return None
            if await db.exists(ChatParticipant.select().where(ChatParticipant.user == user_id)):
                continue  # added to a chat a moment ago; while the row is locked this can't happen again
            ended = await sessions.end_all(db, user_id)
            if actor is not None:
                await audit.note(db, actor, "delete", user_id, account["public_id"])
            await users.delete(db, user_id)
            return ended
