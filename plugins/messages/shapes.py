"""Requests and responses of messages, receipts and ``/sync`` (contract section 7)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired
from uuid import UUID

from pydantic import Field, StringConstraints
from typing_extensions import TypedDict

from handlers.http.pages import CURSOR
from handlers.wire.chat_events import ChatEvent
from handlers.wire.shapes import Base64, Id, PublicId, Shape, bounded

MAX_PAYLOAD = 64 * 1024  # bytes, contract section 7
MAX_METADATA = 4 * 1024  # bytes of JSON: only what a client needs before decryption, not a second payload
YEAR = 366 * 86_400
MAX_SEQ = 2**62

Payload = Annotated[Base64, Field(min_length=1, max_length=MAX_PAYLOAD)]
MessageType = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]{1,64}$"), Field(description="The apps' own.")
]
Metadata = Annotated[
    dict[str, Any],
    bounded(MAX_METADATA),
    Field(description="The apps' own; the server can read it. At most 4 KiB of JSON."),
]
Seq = Annotated[int, Field(ge=0, le=MAX_SEQ)]
Lifetime = Annotated[int, Field(ge=5, le=YEAR, description="Seconds after which the message is erased.")]
# In the path; http.py checks it further.
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
    """The frame ``message_send``."""

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
    before_seq: Annotated[int, Field(ge=1, le=MAX_SEQ, description="Only messages before it.")] | None = None
    after_seq: (
        Annotated[int, Field(ge=0, le=MAX_SEQ, description="Only messages after it, the oldest first.")] | None
    ) = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


class SyncQuery(Shape):
    # A cursor lists up to 180 recently active chats, twice at most.
    cursor: Annotated[str, Field(max_length=12_000, pattern=CURSOR, description="From the previous page.")] | None = (
        None
    )
    limit: Annotated[int, Field(ge=1, le=1000)] = 200


# Responses -----------------------------------------------------------------------------------------------------


class Posted(TypedDict):
    """The place of a message in its chat."""

    id: UUID
    chat_id: UUID
    seq: int
    created_at: datetime


class Delivered(TypedDict):
    """A sealed message, without what its sender must not learn."""

    id: UUID
    created_at: datetime


class Watermarks(TypedDict):
    """Your own watermarks; ``unread_count`` counts messages by others."""

    delivered_seq: int
    read_seq: int
    unread_count: int


class Mark(TypedDict):
    """How far a participant has received and read a chat."""

    user_id: UUID
    delivered_seq: int
    read_seq: int


class Receipts(TypedDict):
    """How far participants have received and read a chat. Not an event: it has no ``seq`` and is not sent again."""

    type: Literal["receipts"]
    chat_id: UUID
    marks: list[Mark]


class ChatMark(TypedDict):
    """How far a participant has received and read one of your chats."""

    chat_id: UUID
    user_id: UUID
    delivered_seq: int
    read_seq: int


class Read(TypedDict):
    """A participant who has read a message."""

    user_id: UUID
    read_at: datetime


class DeletedChat(TypedDict):
    """A chat that you have deleted for yourself: drop everything up to ``seq``."""

    chat_id: UUID
    seq: int


class SyncPage(TypedDict):
    """Send ``cursor`` with the next request, at once if ``has_more``. ``marks`` have moved since the cursor: the newest
    of each participant, which may be repeated. ``deleted`` is left out if it is empty."""

    events: list[ChatEvent]
    marks: list[ChatMark]
    deleted: NotRequired[list[DeletedChat]]
    cursor: str
    has_more: bool
