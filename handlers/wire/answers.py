"""Answers: types that several features send: people, messages and chats."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired
from uuid import UUID

from pydantic import Field
from typing_extensions import TypedDict

from handlers.wire.shapes import Base64

ChatType = Literal["direct", "group", "channel", "secret", "cloud"]
Role = Literal["owner", "admin", "member", "restricted"]


class Person(TypedDict):
    """A user, as lists show them."""

    user_id: UUID
    public_id: str
    display_name: str | None
    avatar_url: str | None


class Reaction(TypedDict):
    user_id: UUID
    emoji: str


class ReactionCount(TypedDict):
    emoji: str
    count: int


class Message(TypedDict):
    """A message as it is now. You don't see those from before you joined, nor what happened after you left; asking for
    them is 404."""

    id: UUID
    chat_id: UUID
    seq: int
    sender_id: Annotated[UUID | None, Field(description="Null for a sealed one, and for a deleted account.")]
    client_id: UUID
    encrypted_payload: Base64
    message_type: str
    metadata: dict[str, Any] | None
    reply_to: UUID | None
    reply_to_seq: Annotated[int | None, Field(description="The `seq` of that message.")]
    forwarded_from: UUID | None
    reactions: Annotated[list[Reaction], Field(description="The first 200; in a channel your own.")]
    reaction_counts: NotRequired[
        Annotated[
            list[ReactionCount],
            Field(description="In a channel: how often each emoji was given, the most frequent first."),
        ]
    ]
    created_at: datetime
    edited_at: datetime | None
    expires_at: datetime | None


class Thread(TypedDict):
    """A chat, the same for all its participants."""

    id: UUID
    type: ChatType
    title: str | None
    avatar_url: str | None
    created_by: UUID | None
    settings: dict[str, Any]
    created_at: datetime
    updated_at: Annotated[datetime, Field(description="When its last event was.")]
    participant_count: int
