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
    """A message was posted or edited; ``message`` shows it as it is now."""

    type: Literal["message_new", "message_edited"]
    message: Message


class MessageDeleted(_Event):
    """A message is gone."""

    type: Literal["message_deleted"]
    message_id: UUID
    reason: Annotated[
        Literal["deleted", "expired", "delivered"],
        Field(description="`expired`: its time had come; `delivered`: it was, in a secret chat."),
    ]


class ReactionEvent(_Event):
    """A user reacted to a message, or took a reaction back."""

    type: Literal["reaction_added", "reaction_removed"]
    message_id: UUID
    user_id: UUID
    emoji: str


class PinEvent(_Event):
    """A user pinned or unpinned a message. A pin that ends because its message was deleted or has expired makes no
    event."""

    type: Literal["message_pinned", "message_unpinned"]
    message_id: UUID
    user_id: UUID


class ReceiptEvent(_Event):
    """From servers before receipts were marks. It holds its ``seq`` in ``/sync`` until it is too old to be kept; the
    server makes no new ones."""

    type: Literal["receipt"]
    user_id: UUID
    delivered_seq: int
    read_seq: int


class ParticipantEvent(_Event):
    """A user joined the chat, or got another role; ``role`` is the present one."""

    type: Literal["participant_added", "participant_role"]
    user_id: UUID
    role: Role


class ParticipantInvited(_Event):
    """A user was invited by another one, and gets this event, too. They join by ``participant_added``."""

    type: Literal["participant_invited"]
    user_id: UUID
    by: UUID


class ParticipantRemoved(_Event):
    """A user was removed, left, or deleted their account; or an invitation was withdrawn. For that user it is the last
    event of the chat. ``role`` is the one that they had; events of older servers lack it."""

    type: Literal["participant_removed"]
    user_id: UUID
    role: NotRequired[Role]


class ChatChanged(_Event):
    """A chat was created, changed or deleted; ``chat`` shows it as it is now. ``chat_deleted`` is the last event of a
    chat."""

    type: Literal["chat_created", "chat_updated", "chat_deleted"]
    chat: Thread


class Hidden(_Event):
    """An event that you may not see, without its content. In ``/sync`` one stands for consecutive ones, up to
    ``to_seq``."""

    type: Literal["hidden"]
    to_seq: NotRequired[int]


# The events of each feature.
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
