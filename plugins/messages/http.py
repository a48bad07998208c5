"""The endpoints of messages, receipts, sealed inboxes and ``/sync``."""

from __future__ import annotations

import unicodedata
from urllib.parse import unquote_to_bytes
from uuid import UUID

from config.settings import Rate
from handlers.http.base import ApiHandler
from handlers.http.pages import PAGED, PageQuery, reply_page
from handlers.wire.answers import Message
from handlers.wire.costs import POSTS, READS
from handlers.wire.emoji import MAX_EMOJI, canonical
from handlers.wire.errors import Conflict, Fault, Forbidden, InvalidRequest, NotFound, Unauthorized
from handlers.wire.operations import Answer, Header, operation
from plugins.messages import shapes
from plugins.messages.messages import Messages
from plugins.messages.receipts import Receipts
from plugins.messages.sealed import Inboxes
from plugins.messages.sync import CursorExpired, Sync

_NO_EMOJI = InvalidRequest("Some fields are not valid.", details=[Fault("emoji", "not one emoji of at most 64 bytes")])
MAX_MESSAGE_BYTES = 256 * 1024  # of JSON of one message with 200 reactions
BY_USER = {"rate_limit_messages": "user"}


class ChatMessages(ApiHandler):
    def initialize(self, messages: Messages, rate: Rate) -> None:
        self._messages, self._rate = messages, rate

    @operation({200: Answer(list[Message], headers=PAGED)}, refuses=(NotFound,), cost=READS)
    async def get(self, chat_id: UUID, query: shapes.HistoryQuery) -> None:
        """List the messages of a chat.

        Messages before `before_seq`, or all, come newest first; with `after_seq`, messages after it come oldest first.
        A page has at most `limit` messages and at most 1 MiB, so it may be short: if there are more, `Link` leads on.
        """
        await self.reserve()
        messages, more = await self._messages.history(self.session.user_id, chat_id, query)
        if more:
            last = messages[-1]["seq"]
            if query.after_seq is None:
                self.link_next(limit=query.limit, before_seq=last)
            elif query.before_seq is None:
                self.link_next(limit=query.limit, after_seq=last)
            else:
                self.link_next(limit=query.limit, after_seq=last, before_seq=query.before_seq)
        self.reply(messages)

    @operation(
        {201: shapes.Posted, 200: Answer(shapes.Posted, "It was already posted with the same `client_id`.")},
        refuses=(Forbidden, NotFound, Conflict),
        limits=BY_USER,
        cost=POSTS,
    )
    async def post(self, chat_id: UUID, body: shapes.Post) -> None:
        """Post a message. The response confirms that it is on disk.

        A message with the same `client_id` of the same sender is stored only once; with another payload it is a 409.
        """
        await self.limit("messages", self._rate, str(self.session.user_id))
        posted, repeated = await self._messages.post(self.session.user_id, chat_id, body)
        answer: shapes.Posted
        answer = {"id": posted.id, "chat_id": posted.chat_id, "seq": posted.seq, "created_at": posted.created_at}
        self.reply(answer, 200 if repeated else 201)


class OneMessage(ApiHandler):
    def initialize(self, messages: Messages, rate: Rate) -> None:
        self._messages, self._rate = messages, rate

    @operation({200: Message}, refuses=(NotFound,), cost=READS)
    async def get(self, message_id: UUID) -> None:
        """Get one message, as the history shows it."""
        await self.reserve(MAX_MESSAGE_BYTES)
        self.reply(await self._messages.get(self.session.user_id, message_id))

    @operation({200: Message}, refuses=(Forbidden, NotFound), limits=BY_USER, cost=POSTS)
    async def put(self, message_id: UUID, body: shapes.Edit) -> None:
        """Edit a message that you sent. Fields that are not sent stay; the payload is required."""
        await self.limit("messages", self._rate, str(self.session.user_id))
        await self.reserve(MAX_MESSAGE_BYTES)
        self.reply(await self._messages.edit(self.session.user_id, message_id, body))

    @operation({204: None}, refuses=(Forbidden, NotFound), limits=BY_USER, cost=POSTS)
    async def delete(self, message_id: UUID) -> None:
        """Erase a message for everybody.

        For its sender; in a chat of many also for its owner and admins; in a sealed inbox for its owner.
        """
        await self.limit("messages", self._rate, str(self.session.user_id))
        await self._messages.delete(self.session.user_id, message_id)
        self.reply_nothing()


class Reaction(ApiHandler):
    def initialize(self, messages: Messages, rate: Rate) -> None:
        self._messages, self._rate = messages, rate

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict), limits=BY_USER, cost=POSTS)
    async def put(self, message_id: UUID, emoji: shapes.Emoji) -> None:
        """React to a message. The same reaction again changes nothing.

        An emoji with and without U+FE0F is the same reaction. The server stores its fully-qualified form.
        """
        await self.limit("messages", self._rate, str(self.session.user_id))
        await self._messages.react(self.session.user_id, message_id, _emoji(emoji))
        self.reply_nothing()

    @operation({204: None}, refuses=(NotFound,), limits=BY_USER, cost=POSTS)
    async def delete(self, message_id: UUID, emoji: shapes.Emoji) -> None:
        """Remove a reaction. Does nothing if there is none."""
        await self.limit("messages", self._rate, str(self.session.user_id))
        await self._messages.unreact(self.session.user_id, message_id, _reaction(emoji))
        self.reply_nothing()


def _emoji(text: str) -> str:
    """An emoji from a part of the path, in the form that is stored. Raises InvalidRequest."""
    emoji = canonical(_text(text))
    if emoji is None:
        raise _NO_EMOJI
    return emoji


def _reaction(text: str) -> str:
    """A reaction to remove: an emoji, or a text that older servers stored as one. Raises InvalidRequest."""
    decoded = _text(text)
    return canonical(decoded) or decoded


def _text(text: str) -> str:
    """Decode a part of the path: at most ``MAX_EMOJI`` bytes, no controls or blanks. Raises InvalidRequest."""
    raw = unquote_to_bytes(text) if "%" in text else text.encode()
    try:
        decoded = raw.decode()
    except UnicodeDecodeError:
        raise _NO_EMOJI from None
    if not 1 <= len(raw) <= MAX_EMOJI or any(unicodedata.category(c) in ("Cc", "Cs", "Zs") for c in decoded):
        raise _NO_EMOJI
    return decoded


class Receipt(ApiHandler):
    def initialize(self, receipts: Receipts, rate: Rate) -> None:
        self._receipts, self._rate = receipts, rate

    @operation({200: list[shapes.Mark]}, refuses=(NotFound,), cost=READS)
    async def get(self, chat_id: UUID) -> None:
        """List how far participants have received and read a chat.

        You see your own mark. In a chat of at most 64 participants you see all marks; in a larger one also those of
        participants who may have read a message of yours. Marks of users whom you have blocked, or who have blocked
        you, are left out.
        """
        await self.reserve()
        self.reply(await self._receipts.marks(self.session.user_id, chat_id))

    @operation({200: shapes.Watermarks}, refuses=(NotFound,), limits={"rate_limit_receipts": "user"}, cost=POSTS)
    async def post(self, chat_id: UUID, body: shapes.Receipt) -> None:
        """Report how far you have received and read a chat.

        Watermarks only grow, and what is read is also delivered. In a secret chat delivered messages are erased.
        """
        await self.limit("receipts", self._rate, str(self.session.user_id))
        self.reply(await self._receipts.advance(self.session.user_id, chat_id, body))


class Reads(ApiHandler):
    def initialize(self, receipts: Receipts) -> None:
        self._receipts = receipts

    @operation({200: Answer(list[shapes.Read], headers=PAGED)}, refuses=(NotFound,), cost=READS)
    async def get(self, message_id: UUID, query: PageQuery) -> None:
        """List the users who have read a message of yours, the last reader first.

        Participants who have left are not listed; in a channel the list is empty. A receipt over more than 1,000
        messages is recorded only for the newest ones.
        """
        reads = await self._receipts.reads(self.session.user_id, message_id, query)
        reply_page(self, query, reads, "read_at", "user_id")


class SealedMessages(ApiHandler):
    public = True  # the server must not learn the sender
    KEY = Header(
        "Unidentified-Access-Key", "The base64 of the receiver's `sealed_access_key`.", required=True, key=True
    )
    cors_takes = (KEY.name,)

    def initialize(self, inboxes: Inboxes, rate: Rate) -> None:
        self._inboxes, self._rate = inboxes, rate

    @operation(
        {201: shapes.Delivered, 200: Answer(shapes.Delivered, "It was posted before, under the same `client_id`.")},
        refuses=(NotFound, Conflict),
        headers=(KEY,),
        limits={"rate_limit_sealed": "address", "rate_limit_sealed_inbox": "receiver"},
        cost=POSTS,
    )
    async def post(self, body: shapes.Sealed) -> None:
        """Send a message to a user's sealed inbox. Send no token, because the server must not learn the sender.

        A wrong key, an unknown user and a user without an inbox get the same response.
        """
        key = self.request.headers.get(self.KEY.name)
        if key is None:
            raise Unauthorized("The header Unidentified-Access-Key is missing.")
        await self.limit("sealed", self._rate)
        delivered, is_new = await self._inboxes.deliver(key, body)
        self.reply(delivered, 201 if is_new else 200)


class SyncPage(ApiHandler):
    def initialize(self, sync: Sync, rate: Rate) -> None:
        self._sync, self._rate = sync, rate

    @operation({200: shapes.SyncPage}, refuses=(CursorExpired,), limits={"rate_limit_sync": "user"}, cost=READS)
    async def get(self, query: shapes.SyncQuery) -> None:
        """Get all events of your chats since a cursor, none skipped.

        Events of a chat come together, by `seq`. A page has at most `limit` events and deletions and at most 1 MiB, so
        it may be short: `has_more` says if there are more. Without a cursor the response has only the present cursor:
        get it first, and then list the chats.
        """
        await self.limit("sync", self._rate, str(self.session.user_id))
        await self.reserve()
        self.reply(
            await self._sync.page(self.session.user_id, query.cursor, query.limit, seen=self.request.method != "HEAD")
        )
