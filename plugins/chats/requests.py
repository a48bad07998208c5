"""Requests: accept and decline invitations."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from handlers.alerts import Alerts
from handlers.sockets.hub import Hub
from handlers.wire.errors import Conflict, NotFound
from handlers.wire.frames import chat_changed
from models import contacts
from models.chats import invitations, messages, participants, sanctions
from models.chats.changes import ChatChanges
from models.database import Database
from plugins.chats.rights import NO_CHAT


class Requests:
    """Accepts and declines invitations. Other users don't notice that an invitation was declined."""

    def __init__(self, db: Database, hub: Hub, changes: ChatChanges, alerts: Alerts) -> None:
        self._db, self._hub, self._changes, self._alerts = db, hub, changes, alerts

    async def accept(self, user_id: UUID, chat_id: UUID) -> None:
        """Accept an invitation into a chat, or a chat that the user is in. Accepting again changes nothing.

        Raises NotFound.
        """
        async with self._changes.lock(chat_id, user_id, concealed=True) as change:
            if change is None:
                raise NotFound(NO_CHAT)
            invitation = await invitations.consume(change, user_id)
            if invitation is not None and change.role is not None:
                await invitations.reveal(change, user_id)
                change.notices[user_id] = None
            elif invitation is not None:
                role = sanctions.role_on_return(await sanctions.get(change, user_id), invitation["role"])
                await participants.add(change, user_id, role, accepted=True)
            elif change.role is None or await participants.is_concealed(change, user_id):
                raise NotFound(NO_CHAT)
            else:
                await messages.note_accepted(change)
                if change.is_pair:
                    await contacts.note_partner(change)

    async def decline(self, user_id: UUID, chat_ids: Sequence[UUID] | None, *, block: bool) -> None:
        """Decline the invitations into these chats, or all, and with ``block`` also block the inviters. Ignores chats
        without an invitation of the user. Raises Conflict if the list of blocks is full; by then the invitations are
        declined."""
        declined = await invitations.decline(self._db, user_id, chat_ids)
        for row in declined:
            if row["state"] == "inside":
                await self._leave(user_id, row["chat_id"])
            self._hub.send(user_id, chat_changed(row["chat_id"]))
        if block:
            await self._block(user_id, [row["invited_by"] for row in declined])

    async def _leave(self, user_id: UUID, chat_id: UUID) -> None:
        async with self._changes.lock(chat_id, user_id, concealed=True) as change:
            if change is None or not await participants.is_concealed(change, user_id):
                return  # the chat has ended, or the user has just accepted
            await participants.leave_concealed(change)

    async def _block(self, user_id: UUID, inviters: Sequence[UUID | None]) -> None:
        for inviter in sorted({inviter for inviter in inviters if inviter not in (None, user_id)}, key=str):
            concealed = await contacts.block(self._db, user_id, inviter, contacts.MAX_BLOCKS)
            if concealed is None:
                raise Conflict(f"You can block at most {contacts.MAX_BLOCKS:,} users.")
            for chat_id in concealed:
                self._hub.send(user_id, chat_changed(chat_id))
            self._alerts.visibility(user_id, inviter)
            self._alerts.visibility(inviter, user_id)
