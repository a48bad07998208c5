"""The endpoints of messages, receipts, sealed inboxes and ``/sync``."""

from __future__ import annotations

import unicodedata
from urllib.parse import unquote_to_bytes
from uuid import UUID

from config.values import Rate
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
MAX_MESSAGE_BYTES = 256 * 1024  # bytes of JSON that one message may have, with 200 reactions
BY_USER = {"rate_limit_messages": "user"}


class ChatMessages(ApiHandler):
    def initialize(self, messages: Messages, rate: Rate) -> None:
        self._messages, self._rate = messages, rate

    @operation({200: Answer(list[Message], headers=PAGED)}, refuses=(NotFound,), cost=READS)
    async def get(self, chat_id: UUID, query: shapes.HistoryQuery) -> None:
        """List the messages of a chat.

        Without parameters, or before `before_seq`, the newest come first; after `after_seq` the oldest. A page has at
        most `limit` messages and at most 1 MiB. It may be short while there are more: go by `Link`.
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
        {201: shapes.Posted, 200: Answer(shapes.Posted, "It was posted before, under the same `client_id`.")},
        refuses=(Forbidden, NotFound, Conflict),
        limits=BY_USER,
        cost=POSTS,
    )
    async def post(self, chat_id: UUID, body: shapes.Post) -> None:
        """Post a message. The response comes once it is on disk.

        The same `client_id` of the same sender is the same message: send it again as often as you need, also when you
        may no longer post, or the message or chat is gone. With another payload, or in another chat, it is `conflict`.

        It is `forbidden` if you are `restricted`, in a channel if you are neither owner nor admin, and in a direct or
        secret chat if one of you has blocked the other. The frame `message_send` does the same.
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
        """Edit one of your messages; `message_type` and `metadata` stay if you leave them out."""
        await self.limit("messages", self._rate, str(self.session.user_id))
        await self.reserve(MAX_MESSAGE_BYTES)
        self.reply(await self._messages.edit(self.session.user_id, message_id, body))

    @operation({204: None}, refuses=(Forbidden, NotFound), limits=BY_USER, cost=POSTS)
    async def delete(self, message_id: UUID) -> None:
        """Delete a message for everybody, and erase its payload.

        Its sender may do this; in a group, cloud or channel its owner and admins, too; and the owner of the sealed
        inbox that it is in.
        """
        await self.limit("messages", self._rate, str(self.session.user_id))
        await self._messages.delete(self.session.user_id, message_id)
        self.reply_nothing()


class Reaction(ApiHandler):
    def initialize(self, messages: Messages, rate: Rate) -> None:
        self._messages, self._rate = messages, rate

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict), limits=BY_USER, cost=POSTS)
    async def put(self, message_id: UUID, emoji: shapes.Emoji) -> None:
        """React to a message; again changes nothing.

        `emoji` is one emoji by the grammar of [UTS 51](https://unicode.org/reports/tr51/). With U+FE0F and without it
        is the same reaction; the server stores and shows its fully-qualified form. It is `forbidden` if you are
        `restricted`, and `conflict` beyond 20 different emoji of one user on one message.
        """
        await self.limit("messages", self._rate, str(self.session.user_id))
        await self._messages.react(self.session.user_id, message_id, _emoji(emoji))
        self.reply_nothing()

    @operation({204: None}, refuses=(NotFound,), limits=BY_USER, cost=POSTS)
    async def delete(self, message_id: UUID, emoji: shapes.Emoji) -> None:
        """Take back a reaction, if there is one."""
        await self.limit("messages", self._rate, str(self.session.user_id))
        await self._messages.unreact(self.session.user_id, message_id, _reaction(emoji))
        self.reply_nothing()


def _emoji(text: str) -> str:
    """One emoji from a part of the path, in the form that is stored. Raises InvalidRequest."""
    emoji = canonical(_text(text))
    if emoji is None:
        raise _NO_EMOJI
    return emoji


def _reaction(text: str) -> str:
    """A reaction to take back: an emoji, or a text that older servers stored as one. Raises InvalidRequest."""
    given = _text(text)
    return canonical(given) or given


def _text(text: str) -> str:
    """Text of a part of the path: at most ``MAX_EMOJI`` bytes, no controls or blanks. Raises InvalidRequest."""
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

        Everything up to that `seq` has arrived, or was read. The marks only grow, and what you have read you have
        received. In a secret chat the server erases what was delivered. A receipt is a mark, not an event: it takes no
        `seq`, and other participants get it by `receipts`.
        """
        await self.limit("receipts", self._rate, str(self.session.user_id))
        self.reply(await self._receipts.advance(self.session.user_id, chat_id, body))


class Reads(ApiHandler):
    def initialize(self, receipts: Receipts) -> None:
        self._receipts = receipts

    @operation({200: Answer(list[shapes.Read], headers=PAGED)}, refuses=(NotFound,), cost=READS)
    async def get(self, message_id: UUID, query: PageQuery) -> None:
        """List who has read one of your messages, the last one first.

        It leaves out participants who have left, users across a block, and all readers of a channel. A receipt that
        passes more than 1,000 messages enters only the newest 1,000 here; for older ones use the marks.
        """
        reads = await self._receipts.reads(self.session.user_id, message_id, query)
        reply_page(self, query, reads, "read_at", "user_id")


class SealedMessages(ApiHandler):
    public = True  # the server must not learn who sends
    KEY = Header(
        "Unidentified-Access-Key", "The base64 of the receiver's `sealed_access_key`.", required=True, key=True
    )
    cors_request_headers = (KEY.name,)

    def initialize(self, inboxes: Inboxes, rate: Rate) -> None:
        self._inboxes, self._rate = inboxes, rate

    @operation(
        {201: shapes.Delivered, 200: Answer(shapes.Delivered, "It was posted before, under the same `client_id`.")},
        refuses=(NotFound, Conflict),
        headers=(KEY,),
        limits={"rate_limit_sealed": "address", "rate_limit_sealed_inbox": "user written to"},
        cost=POSTS,
    )
    async def post(self, body: shapes.Sealed) -> None:
        """Send a message to a user's sealed inbox. Send no token: the server is not to know the sender.

        A wrong key, an unknown user and a user without an inbox get the same response, `unauthorized`. An inbox whose
        chat was deleted is 404. The message arrives in a `secret` chat in which the receiver is alone (`peer` is null),
        with `sender_id` null.
        """
        key = self.request.headers.get(self.KEY.name)
        if key is None:
            raise Unauthorized("The header Unidentified-Access-Key is needed.")
        await self.limit("sealed", self._rate)
        answer, new = await self._inboxes.deliver(key, body)
        self.reply(answer, 201 if new else 200)


class SyncPage(ApiHandler):
    def initialize(self, sync: Sync, rate: Rate) -> None:
        self._sync, self._rate = sync, rate

    @operation({200: shapes.SyncPage}, refuses=(CursorExpired,), limits={"rate_limit_sync": "user"}, cost=READS)
    async def get(self, query: shapes.SyncQuery) -> None:
        """Get all events of your chats since a cursor, without gaps.

        The events of a chat stand together, by `seq`. A page has at most `limit` events and deletions and at most 1
        MiB. It may be short while there are more: go by `has_more`. Without a cursor there are no events, but the
        present cursor: take it first, then list your chats.
        """
        await self.limit("sync", self._rate, str(self.session.user_id))
        await self.reserve()
        self.reply(
            await self._sync.page(self.session.user_id, query.cursor, query.limit, seen=self.request.method != "HEAD")
        )
