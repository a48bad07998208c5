"""Announcing: the events of a change of a chat, sent to its participants and to others who are notified of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol
from uuid import UUID

from handlers.sockets.delivery import Delivery
from handlers.sockets.hub import Hub
from handlers.wire.frames import Frame, chat_changed


class Event(Protocol):
    @property
    def frame(self) -> Frame: ...


class Change(Protocol):
    """What is announced of a change (models/chats/events.py). ``payer`` is charged for its frames, unless it is None.
    ``notices`` are users who take no part: each receives this event, or that the chat has changed for them."""

    @property
    def chat_id(self) -> UUID: ...
    @property
    def access(self) -> int: ...
    @property
    def payer(self) -> UUID | None: ...
    @property
    def events(self) -> Sequence[Event]: ...
    @property
    def notices(self) -> Mapping[UUID, Event | None]: ...


class Announcer:
    """Sends the events of changes that are committed."""

    def __init__(self, delivery: Delivery, hub: Hub) -> None:
        self._delivery, self._hub = delivery, hub

    async def announce(self, change: Change) -> None:
        """Send the events to all participants, and the notices to their users."""
        frames = [event.frame for event in change.events]
        await self._delivery.announce(change.chat_id, change.access, frames, by=change.payer)
        for user_id, event in change.notices.items():
            self._hub.send(user_id, event.frame if event else chat_changed(change.chat_id))
