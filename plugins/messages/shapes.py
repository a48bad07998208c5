"""What clients send of messages (contract section 7)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from handlers.shapes import Base64, Id, PublicId, Shape, bounded

MAX_PAYLOAD = 64 * 1024  # bytes, contract section 7
MAX_METADATA = 4 * 1024  # bytes of JSON: what a client needs before it decrypts, not a second payload
YEAR = 366 * 86_400
MAX_SEQ = 2**62

Payload = Annotated[Base64, Field(min_length=1, max_length=MAX_PAYLOAD)]
MessageType = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]{1,64}$")]
Metadata = Annotated[dict[str, Any], bounded(MAX_METADATA)]
Seq = Annotated[int, Field(ge=0, le=MAX_SEQ)]
Lifetime = Annotated[int, Field(ge=5, le=YEAR)]


class Post(Shape):
    client_id: Id
    encrypted_payload: Payload
    message_type: MessageType
    metadata: Metadata | None = None
    reply_to: Id | None = None
    forwarded_from: Id | None = None
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
    before_seq: Annotated[int, Field(ge=1, le=MAX_SEQ)] | None = None
    after_seq: Seq | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


class SyncQuery(Shape):
    # A cursor names the chats that were busy at its moment; with 180 of them twice it is as long as it gets.
    cursor: Annotated[str, Field(max_length=12_000)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 200
