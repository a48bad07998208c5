"""Rights: which role may do what in a chat, judged with the chat locked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from handlers.wire.errors import Conflict, Forbidden, NotFound
from models.chats import views
from models.chats.changes import ChatChanges
from models.chats.events import Change

RANK = {"owner": 3, "admin": 2, "member": 1, "restricted": 0}
NO_CHAT = "There is no such chat."


@asynccontextmanager
async def locked(changes: ChatChanges, user_id: UUID, chat_id: UUID) -> AsyncIterator[Change]:
    """The chat, locked, of which the user is a participant. Raises NotFound, also where they have deleted it."""
    async with changes.lock(chat_id, user_id) as change:
        if change is None or change.role is None:
            raise NotFound(NO_CHAT)
        if change.type == "direct" and await views.deleted(changes.db, user_id, chat_id):
            raise NotFound(NO_CHAT)
        yield change


@asynccontextmanager
async def governing(changes: ChatChanges, user_id: UUID, chat_id: UUID) -> AsyncIterator[Change]:
    """The chat of many, locked, of which the user is owner or admin. Raises NotFound, Conflict, Forbidden."""
    async with locked(changes, user_id, chat_id) as change:
        of_many(change)
        at_least(change, "admin")
        yield change


def at_least(change: Change, role: str) -> None:
    """Raises Forbidden for who has a lower role."""
    assert change.role is not None
    if RANK[change.role] < RANK[role]:
        raise Forbidden(f"Only {'the owner' if role == 'owner' else 'the owner and admins'} may do this.")


def above(change: Change, other: str) -> None:
    """Raises Forbidden when the other's role is not lower."""
    assert change.role is not None
    if RANK[change.role] <= RANK[other]:
        raise Forbidden("This participant's role is not below yours.")


def of_many(change: Change) -> None:
    """Raises Conflict in a chat of two."""
    if change.two:
        raise Conflict(f"The participants of a {change.type} chat don't change.")
