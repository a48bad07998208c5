"""The endpoints of messages, receipts, sealed inboxes and ``/sync``."""

from __future__ import annotations

import unicodedata
from urllib.parse import unquote_to_bytes
from uuid import UUID

from config.settings import Rate
from handlers.base import ApiHandler
from handlers.errors import Fault, InvalidRequest, Unauthorized
from plugins.messages import shapes
from plugins.messages.messages import Messages, shown
from plugins.messages.receipts import Receipts
from plugins.messages.sealed import Inboxes
from plugins.messages.sync import Sync

MAX_EMOJI = 32  # bytes, contract section 7


class ChatMessages(ApiHandler):
    def initialize(self, messages: Messages, rate: Rate) -> None:
        self._messages, self._rate = messages, rate

    async def get(self, chat_id: str) -> None:
        """200 list of Message, the newest first, or the oldest behind ``after_seq``; with a Link to more; 400, 404."""
        query = self.query(shapes.HistoryQuery)
        rows = await self._messages.history(self.session.user_id, UUID(chat_id), query)
        if len(rows) > query.limit:
            last = rows[query.limit - 1]["seq"]
            if query.after_seq is None:
                self.link_next(limit=query.limit, before_seq=last)
            elif query.before_seq is None:
                self.link_next(limit=query.limit, after_seq=last)
            else:
                self.link_next(limit=query.limit, after_seq=last, before_seq=query.before_seq)
        self.reply([shown(row) for row in rows[: query.limit]])

    async def post(self, chat_id: str) -> None:
        """201 ``id, chat_id, seq, created_at``, after the commit; 200 for a repetition; 400, 403, 404, 409, 429."""
        request = self.body(shapes.Post)
        await self.limit("messages", self._rate, str(self.session.user_id))
        posted, repeated = await self._messages.post(self.session.user_id, UUID(chat_id), request)
        answer = {"id": posted.id, "chat_id": posted.chat_id, "seq": posted.seq, "created_at": posted.created_at}
        self.reply(answer, 200 if repeated else 201)


class OneMessage(ApiHandler):
    def initialize(self, messages: Messages, rate: Rate) -> None:
        self._messages, self._rate = messages, rate

    async def put(self, message_id: str) -> None:
        """200 Message after the edit; 400, 403, 404, 429."""
        request = self.body(shapes.Edit)
        await self.limit("messages", self._rate, str(self.session.user_id))
        self.reply(await self._messages.edit(self.session.user_id, UUID(message_id), request))

    async def delete(self, message_id: str) -> None:
        """204, and it is erased for everybody; 403, 404, 429."""
        await self.limit("messages", self._rate, str(self.session.user_id))
        await self._messages.delete(self.session.user_id, UUID(message_id))
        self.reply_nothing()


class Reaction(ApiHandler):
    def initialize(self, messages: Messages, rate: Rate) -> None:
        self._messages, self._rate = messages, rate

    async def put(self, message_id: str, emoji: str) -> None:
        """204, also again; 400, 403, 404, 409, 429."""
        await self.limit("messages", self._rate, str(self.session.user_id))
        await self._messages.react(self.session.user_id, UUID(message_id), _emoji(emoji))
        self.reply_nothing()

    async def delete(self, message_id: str, emoji: str) -> None:
        """204, also where there is none; 400, 404, 429."""
        await self.limit("messages", self._rate, str(self.session.user_id))
        await self._messages.unreact(self.session.user_id, UUID(message_id), _emoji(emoji))
        self.reply_nothing()


def _emoji(text: str) -> str:
    """One emoji from a part of the path. Whether it is one is the clients' affair; it is one thing to be seen, though:
    no letters beside it, no control characters, at most 32 bytes."""
    fault = InvalidRequest("Some fields are not valid.", details=[Fault("emoji", "not one emoji of at most 32 bytes")])
    raw = unquote_to_bytes(text) if "%" in text else text.encode()
    try:
        emoji = raw.decode()
    except UnicodeDecodeError:
        raise fault from None
    if not 1 <= len(raw) <= MAX_EMOJI or any(unicodedata.category(c) in ("Cc", "Cs", "Zs", "Cn") for c in emoji):
        raise fault
    return emoji


class Receipt(ApiHandler):
    def initialize(self, receipts: Receipts, rate: Rate) -> None:
        self._receipts, self._rate = receipts, rate

    async def post(self, chat_id: str) -> None:
        """200 ``delivered_seq, read_seq, unread_count`` as they are now; 400, 404, 429."""
        request = self.body(shapes.Receipt)
        await self.limit("receipts", self._rate, str(self.session.user_id))
        self.reply(await self._receipts.advance(self.session.user_id, UUID(chat_id), request))


class SealedMessages(ApiHandler):
    public = True  # the server must not learn who sends

    def initialize(self, inboxes: Inboxes, rate: Rate) -> None:
        self._inboxes, self._rate = inboxes, rate

    async def post(self) -> None:
        """201 ``id, created_at``; 200 when it was posted before; 400, 401, 409, 429."""
        request = self.body(shapes.Sealed)
        key = self.request.headers.get("Unidentified-Access-Key")
        if key is None:
            raise Unauthorized("The header Unidentified-Access-Key is needed.")
        await self.limit("sealed", self._rate)
        answer, new = await self._inboxes.deliver(key, request)
        self.reply(answer, 201 if new else 200)


class SyncPage(ApiHandler):
    def initialize(self, sync: Sync, rate: Rate) -> None:
        self._sync, self._rate = sync, rate

    async def get(self) -> None:
        """200 ``events, cursor, has_more``; 400, 410 ``cursor_expired``, 429."""
        query = self.query(shapes.SyncQuery)
        await self.limit("sync", self._rate, str(self.session.user_id))
        self.reply(await self._sync.page(self.session.user_id, query.cursor, query.limit))
