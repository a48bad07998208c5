"""The endpoints of pins."""

from __future__ import annotations

from uuid import UUID

from config.values import Rate
from handlers.http.base import ApiHandler
from handlers.http.pages import PAGED
from handlers.wire.costs import CHANGES, READS
from handlers.wire.errors import Conflict, Forbidden, NotFound
from handlers.wire.operations import Answer, operation
from plugins.pins import shapes
from plugins.pins.pins import Pins

BY_USER = {"rate_limit_pins": "user"}


class PinsHandler(ApiHandler):
    def initialize(self, pins: Pins, rate: Rate) -> None:
        self._pins, self._rate = pins, rate

    @operation({200: Answer(list[shapes.Pin], headers=PAGED)}, refuses=(NotFound,), cost=READS)
    async def get(self, chat_id: UUID, query: shapes.PinsQuery) -> None:
        """List the pinned messages of a chat, the newest pin first.

        You see the pins of messages that you see. A page ends after `limit` pins or 1 MiB: `Link` has the next one.
        """
        await self.reserve()
        pins, more = await self._pins.listed(self.session.user_id, chat_id, query)
        if more:
            self.link_next(limit=query.limit, before_seq=pins[-1]["seq"])
        self.reply(pins)

    @operation({204: None}, refuses=(Forbidden, NotFound), limits=BY_USER, cost=CHANGES)
    async def delete(self, chat_id: UUID) -> None:
        """Unpin all messages of a chat, also those that you don't see.

        By the users who can pin messages in the chat.
        """
        await self.limit("pins", self._rate, str(self.session.user_id))
        await self._pins.unpin_all(self.session.user_id, chat_id)
        self.reply_nothing()


class PinHandler(ApiHandler):
    def initialize(self, pins: Pins, rate: Rate) -> None:
        self._pins, self._rate = pins, rate

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict), limits=BY_USER, cost=CHANGES)
    async def put(self, message_id: UUID) -> None:
        """Pin a message. A repetition changes nothing.

        By the owner and admins of a chat of many, and by both users of a chat of two. A chat has at most 50 pins.
        """
        await self.limit("pins", self._rate, str(self.session.user_id))
        await self._pins.pin(self.session.user_id, message_id)
        self.reply_nothing()

    @operation({204: None}, refuses=(Forbidden, NotFound), limits=BY_USER, cost=CHANGES)
    async def delete(self, message_id: UUID) -> None:
        """Unpin a message, by the users who can pin it. A repetition changes nothing."""
        await self.limit("pins", self._rate, str(self.session.user_id))
        await self._pins.unpin(self.session.user_id, message_id)
        self.reply_nothing()
