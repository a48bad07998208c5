"""Typing: send the other participants a frame while a user writes. Nothing is stored."""

from __future__ import annotations

import time
from collections import OrderedDict
from uuid import UUID

from handlers.sockets.delivery import Delivery
from handlers.sockets.hub import Peer
from handlers.wire.errors import Forbidden, NotFound
from models.chats.access import Access
from plugins.chats import shapes

INTERVAL = 3.0  # seconds between two frames of a user in a chat; those in between are dropped (contract section 7)
MAX_REMEMBERED = 20_000  # pairs of user and chat; the oldest are dropped first


class Typing:
    def __init__(self, access: Access, delivery: Delivery) -> None:
        self._access, self._delivery = access, delivery
        self._last: OrderedDict[tuple[UUID, UUID], float] = OrderedDict()

    async def forward(self, peer: Peer, request: shapes.Typing) -> None:
        """Send the frame to the others, unless one was sent within INTERVAL. Raises NotFound, Forbidden."""
        user_id, chat_id, now = peer.session.user_id, request.chat_id, time.monotonic()
        key = (user_id, chat_id)
        if self._last.get(key, -INTERVAL) > now - INTERVAL:
            return
        # Unlike for a message, no statement checks the view again, so it must be up to date.
        view = await self._access.current(chat_id)
        if view is None or not view.has(user_id):
            raise NotFound("There is no such chat.")
        if not view.may_post(user_id):
            raise Forbidden("You can't post in this chat.")
        # Check again: another socket may have sent one meanwhile.
        if view.type != "channel" and self._last.get(key, -INTERVAL) <= now - INTERVAL:
            self._note(key, now)
            frame: shapes.TypingFrame = {"type": "typing", "chat_id": chat_id, "user_id": user_id}
            self._delivery.send(chat_id, view.access, view.audience, frame, by=user_id, without=user_id, droppable=True)

    def _note(self, key: tuple[UUID, UUID], now: float) -> None:
        self._last[key] = now
        self._last.move_to_end(key)
        if len(self._last) > MAX_REMEMBERED:
            self._last.popitem(last=False)
