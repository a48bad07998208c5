"""Answers: types that several features send: people, messages and chats."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, NotRequired
from uuid import UUID

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
    """``sender_id`` is null for sealed messages and deleted accounts; ``reactions`` are the first 200. In channels
    they are only your own, and ``reaction_counts`` has the number of each emoji, the most frequent first."""

    id: UUID
    chat_id: UUID
    seq: int
    sender_id: UUID | None
    client_id: UUID
    encrypted_payload: Base64
    message_type: str
    metadata: dict[str, Any] | None
    reply_to: UUID | None
    reply_to_seq: int | None
    forwarded_from: UUID | None
    reactions: list[Reaction]
    reaction_counts: NotRequired[list[ReactionCount]]
    created_at: datetime
    edited_at: datetime | None
    expires_at: datetime | None


class Thread(TypedDict):
    """A chat as events contain it, the same for all participants."""

    id: UUID
    type: ChatType
    title: str | None
    avatar_url: str | None
    created_by: UUID | None
    settings: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    participant_count: int
