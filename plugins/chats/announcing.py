"""Announcing: what happened in a chat is sent to those who are in it, and to those who are asked into it."""

from __future__ import annotations

from uuid import UUID

from handlers.sockets.delivery import Delivery
from handlers.sockets.hub import Hub
from handlers.wire.frames import chat_changed
from models.chats.events import Change


class Announcer:
    """Sends the events of changes that are committed."""

    def __init__(self, delivery: Delivery, hub: Hub) -> None:
        self._delivery, self._hub = delivery, hub

    async def send(self, change: Change, also: UUID | None = None) -> None:
        """Send the events to all participants, to ``also``, who was one until now, and to the users who are asked."""
        frames = [event.frame for event in change.events]
        await self._delivery.announce(change.chat_id, change.access, frames, by=change.user_id, also=also)
        for user_id, event in change.asked.items():
            self._hub.send(user_id, event.frame if event else chat_changed(change.chat_id))

    def changed(self, user_id: UUID, chat_id: UUID) -> None:
        """Let a user's devices look at a chat again."""
        self._hub.send(user_id, chat_changed(chat_id))
