"""Typing: that somebody writes, told to the others and kept nowhere."""

from __future__ import annotations

import time
from collections import OrderedDict
from uuid import UUID

from handlers.sockets.delivery import Delivery
from handlers.sockets.hub import Peer
from handlers.wire.errors import Forbidden, NotFound
from models.chats.access import Access
from plugins.chats import shapes

EVERY = 3.0  # seconds; of what comes sooner nothing is passed on (contract section 7)
REMEMBERED = 20_000  # pairs of user and chat; the oldest go first


class Typing:
    def __init__(self, access: Access, delivery: Delivery) -> None:
        self._access, self._delivery = access, delivery
        self._last: OrderedDict[tuple[UUID, UUID], float] = OrderedDict()

    async def typing(self, peer: Peer, request: shapes.Typing) -> None:
        """Pass it on, unless the same was passed on a moment ago. Raises NotFound, Forbidden."""
        user_id, chat_id, now = peer.session.user_id, request.chat_id, time.monotonic()
        key = (user_id, chat_id)
        if self._last.get(key, -EVERY) > now - EVERY:
            return
        # No statement judges it again as it does a message, so what is remembered of the chat won't do.
        view = await self._access.present(chat_id)
        if view is None or not view.has(user_id):
            raise NotFound("There is no such chat.")
        if not view.may_post(user_id):
            raise Forbidden("You may not post here.")
        if view.type != "channel" and self._last.get(key, -EVERY) <= now - EVERY:  # nor by another socket meanwhile
            self._note(key, now)
            frame: shapes.TypingFrame = {"type": "typing", "chat_id": chat_id, "user_id": user_id}
            self._delivery.send(chat_id, view.access, view.audience, frame, by=user_id, without=user_id, droppable=True)

    def _note(self, key: tuple[UUID, UUID], now: float) -> None:
        self._last[key] = now
        self._last.move_to_end(key)
        if len(self._last) > REMEMBERED:
            self._last.popitem(last=False)
