"""Chat events: durable changes of a chat, the same over sockets and in ``/sync`` (contract section 7)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, NotRequired
from uuid import UUID

from pydantic import Field
from typing_extensions import TypedDict

from handlers.wire.answers import Message, Role, Thread


class _Event(TypedDict):
    chat_id: UUID
    seq: int
    created_at: datetime


class MessageNew(_Event):
    type: Literal["message_new", "message_edited"]
    message: Message


class MessageDeleted(_Event):
    type: Literal["message_deleted"]
    message_id: UUID
    reason: Literal["deleted", "expired", "delivered"]


class ReactionEvent(_Event):
    type: Literal["reaction_added", "reaction_removed"]
    message_id: UUID
    user_id: UUID
    emoji: str


class PinEvent(_Event):
    type: Literal["message_pinned", "message_unpinned"]
    message_id: UUID
    user_id: UUID


class ReceiptEvent(_Event):
    """Of servers before receipts were marks: it holds its seq in ``/sync`` until it is too old to be kept. Nothing
    makes new ones."""

    type: Literal["receipt"]
    user_id: UUID
    delivered_seq: int
    read_seq: int


class ParticipantEvent(_Event):
    type: Literal["participant_added", "participant_role"]
    user_id: UUID
    role: Role


class ParticipantInvited(_Event):
    """A user was invited by another one; they come in by ``participant_added``."""

    type: Literal["participant_invited"]
    user_id: UUID
    by: UUID


class ParticipantRemoved(_Event):
    """Also when an invitation was withdrawn. ``role`` is the one that they had; events of older servers lack it."""

    type: Literal["participant_removed"]
    user_id: UUID
    role: NotRequired[Role]


class ChatChanged(_Event):
    type: Literal["chat_created", "chat_updated", "chat_deleted"]
    chat: Thread


class Hidden(_Event):
    """An event that one may not see; with ``to_seq`` all events from ``seq`` to that one."""

    type: Literal["hidden"]
    to_seq: NotRequired[int]


# Which feature sends which of them.
OF_CHATS = (ParticipantEvent, ParticipantInvited, ParticipantRemoved, ChatChanged, Hidden)
OF_MESSAGES = (MessageNew, MessageDeleted, ReactionEvent)
ChatEvent = Annotated[
    MessageNew
    | MessageDeleted
    | ReactionEvent
    | PinEvent
    | ReceiptEvent
    | ParticipantEvent
    | ParticipantInvited
    | ParticipantRemoved
    | ChatChanged
    | Hidden,
    Field(discriminator="type"),
]
