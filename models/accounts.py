"""What is done to a whole account: erasing it, and what operators do, each with its line in the audit log."""

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
    """``id, public_id, created_at, is_online, last_seen, suspended_at``, and ``endable``: how many sessions ending all
    of them would end."""
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
    """Whether anything was changed (and noted), and the sessions that ended: tell the servers of them."""

    changed: bool
    ended: list[sessions.Ended]


async def _lock(db: Database, user_id: UUID) -> Row | None:
    """The account's row, first of all that is changed with it: whoever signs in meanwhile waits, and then finds the
    change, or was before us and is found by it."""
    return await db.row("SELECT public_id, suspended_at FROM users WHERE id = $1 FOR UPDATE", user_id)


async def suspend(db: Database, user_id: UUID, actor: str) -> Change | None:
    """Keep an account from signing in, and end its sessions; None when it is gone."""
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
    """Let an account sign in again; None when it is gone. The sessions that it had stay ended."""
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
    """Sign an account out everywhere; None when it is gone."""
    async with db.transaction():
        account = await _lock(db, user_id)
        if account is None:
            return None
        ended = await sessions.end_all(db, user_id)
        if ended:
            await audit.note(db, actor, "end-sessions", user_id, account["public_id"])
        return Change(bool(ended), ended)


async def delete(db: Database, user_id: UUID, actor: str) -> Change | None:
    """Erase an account as its owner can; None when it is gone."""
    ended = await erase(ChatChanges(db, announce_nothing), user_id, actor)
    return None if ended is None else Change(True, ended)


async def erase(changes: ChatChanges, user_id: UUID, actor: str | None = None) -> list[sessions.Ended] | None:
    """Erase an account with all that is its own (contract section 10): the sessions that ended; None when it is gone.
    With an ``actor`` it is noted in the audit log.

    It leaves its chats first, each by itself, for chats are locked before accounts everywhere; then its name is taken
    off its messages, many at a time. What a crash in between leaves is an account that can be erased. At the end its
    row is locked: a session that is opened meanwhile is ended with the others, or is not opened at all.
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
                continue  # let into a chat a moment ago; with the row locked nobody can do that any more
            ended = await sessions.end_all(db, user_id)
            if actor is not None:
                await audit.note(db, actor, "delete", user_id, account["public_id"])
            await users.delete(db, user_id)
            return ended
