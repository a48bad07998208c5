"""What clients send of messages (contract section 7), and what they get."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired
from uuid import UUID

from pydantic import Field, StringConstraints
from typing_extensions import TypedDict

from handlers.http.pages import CURSOR
from handlers.wire.chat_events import ChatEvent
from handlers.wire.shapes import Base64, Id, IdText, PublicId, Shape, max_json_bytes

MAX_PAYLOAD = 64 * 1024  # bytes, contract section 7
MAX_METADATA = 4 * 1024  # bytes of JSON: what a client needs before it decrypts, not a second payload
YEAR = 366 * 86_400
MAX_SEQ = 2**62

Payload = Annotated[Base64, Field(min_length=1, max_length=MAX_PAYLOAD, description="1 byte to 64 KiB.")]
MessageType = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]{1,64}$"),
    Field(description="The apps' own, and known to the server."),
]
Metadata = Annotated[
    dict[str, Any],
    max_json_bytes(MAX_METADATA),
    Field(description="The apps' own, and known to the server; 4 KiB of JSON."),
]
Seq = Annotated[int, Field(ge=0, le=MAX_SEQ)]
Lifetime = Annotated[int, Field(ge=5, le=YEAR, description="Seconds after which it is erased.")]
# Of the path; http.py looks at it more closely.
Emoji = Annotated[
    str,
    Field(min_length=1, max_length=64, description="One emoji (UTS 51), percent-encoded; at most 64 bytes of UTF-8."),
]


class Post(Shape):
    client_id: Annotated[Id, Field(description="A new one for each message.")]
    encrypted_payload: Payload
    message_type: MessageType
    metadata: Metadata | None = None
    reply_to: Annotated[Id | None, Field(description="A message of this chat that you see.")] = None
    forwarded_from: Annotated[Id | None, Field(description="A message of any chat that you see.")] = None
    expires_in: Lifetime | None = None


class Send(Post):
    """Post a message, as `POST /chats/{chat_id}/messages` does; the ack comes once it is on disk.

    This socket gets no `message_new` for it. After `unavailable` the message may be stored or not: send it again with
    the same `client_id`."""

    chat_id: Id


class Edit(Shape):
    encrypted_payload: Payload
    message_type: MessageType | None = None
    metadata: Metadata | None = None


class Receipt(Shape):
    delivered_seq: Seq = 0
    read_seq: Seq = 0


class Sealed(Shape):
    public_id: PublicId
    client_id: Id
    encrypted_payload: Payload
    message_type: MessageType
    metadata: Metadata | None = None
    expires_in: Lifetime | None = None


class HistoryQuery(Shape):
    before_seq: Annotated[int, Field(ge=1, le=MAX_SEQ, description="Only those before it.")] | None = None
    after_seq: Annotated[int, Field(ge=0, le=MAX_SEQ, description="Only those behind it, the oldest first.")] | None = (
        None
    )
    limit: Annotated[int, Field(ge=1, le=200)] = 50


class SyncQuery(Shape):
    # A cursor names the chats that were busy at its moment; with 180 of them twice it is as long as it gets.
    cursor: Annotated[str, Field(max_length=12_000, pattern=CURSOR, description="Of the page before.")] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 200


# What they get ------------------------------------------------------------------------------------------------------


class Posted(TypedDict):
    """Where a message stands in its chat."""

    id: UUID
    chat_id: UUID
    seq: int
    created_at: datetime


class Sent(TypedDict):
    """Where the message stands in its chat. ``repeated`` is true if you have posted it before, under the same
    ``client_id``."""

    message_id: IdText
    chat_id: IdText
    seq: int
    created_at: datetime
    repeated: NotRequired[Literal[True]]


class Delivered(TypedDict):
    """A sealed message, to who must not learn more."""

    id: UUID
    created_at: datetime


class Watermarks(TypedDict):
    """Your marks, and how many messages of others you have not read."""

    delivered_seq: int
    read_seq: int
    unread_count: int


class Mark(TypedDict):
    """How far a participant has received and read a chat."""

    user_id: UUID
    delivered_seq: int
    read_seq: int


class Receipts(TypedDict):
    """How far participants have received and read a chat. No event: it has no ``seq`` and is not sent again."""

    type: Literal["receipts"]
    chat_id: UUID
    marks: list[Mark]


class ChatMark(TypedDict):
    """The same, of one of several chats."""

    chat_id: UUID
    user_id: UUID
    delivered_seq: int
    read_seq: int


class Read(TypedDict):
    """A participant who has read a message."""

    user_id: UUID
    read_at: datetime


class DeletedChat(TypedDict):
    """A direct chat that you have deleted for yourself: you no longer see anything up to ``seq``."""

    chat_id: UUID
    seq: int


class SyncPage(TypedDict):
    """``cursor`` is opaque, and for the next request: at once if ``has_more``. ``marks`` are those that moved since the
    cursor, the newest of each participant, at most ``limit`` and 500 a page; they may come again. ``deleted`` is left
    out when it is empty."""

    events: list[ChatEvent]
    marks: list[ChatMark]
    deleted: NotRequired[list[DeletedChat]]
    cursor: str
    has_more: bool
