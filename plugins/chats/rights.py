"""Rights: check what a role may do in a chat, with the chat locked."""

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
async def lock_as_participant(changes: ChatChanges, user_id: UUID, chat_id: UUID) -> AsyncIterator[Change]:
    """Lock a chat as one of its participants. Raises NotFound, also if the user has deleted the chat."""
    async with changes.lock(chat_id, user_id) as change:
        if change is None or change.role is None:
            raise NotFound(NO_CHAT)
        if change.type == "direct" and await views.is_deleted(changes.db, user_id, chat_id):
            raise NotFound(NO_CHAT)
        yield change


@asynccontextmanager
async def lock_as_admin(changes: ChatChanges, user_id: UUID, chat_id: UUID) -> AsyncIterator[Change]:
    """Lock a chat of many as its owner or an admin. Raises NotFound, Conflict, Forbidden."""
    async with lock_as_participant(changes, user_id, chat_id) as change:
        reject_pair(change)
        require_role(change, "admin")
        yield change


def require_role(change: Change, role: str) -> None:
    """Raises Forbidden if the user's role is lower."""
    assert change.role is not None
    if RANK[change.role] < RANK[role]:
        raise Forbidden(f"Only {'the owner' if role == 'owner' else 'the owner and admins'} can do this.")


def require_higher_role(change: Change, other: str) -> None:
    """Raises Forbidden unless the user's role is higher than the other one."""
    assert change.role is not None
    if RANK[change.role] <= RANK[other]:
        raise Forbidden("This participant's role is not below yours.")


def reject_pair(change: Change) -> None:
    """Raises Conflict for a chat of two."""
    if change.is_pair:
        raise Conflict(f"The participants of a {change.type} chat can't change.")
