"""What clients send to ``/chats`` (contract section 7), and what they get."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import Field, StringConstraints
from typing_extensions import TypedDict

from handlers.answers import ChatType, Message, Person, Role, Thread
from handlers.pages import PageQuery
from handlers.shapes import HttpsUrl, Id, PublicId, Shape, bounded
from handlers.text import Title

MAX_SETTINGS = 16 * 1024  # bytes of JSON, as a user's own
YEAR = 366 * 86_400

Settings = Annotated[dict[str, Any], bounded(MAX_SETTINGS), Field(description="The apps' own; at most 16 KiB of JSON.")]


class ListQuery(PageQuery):
    limit: Annotated[int, Field(ge=1, le=500)] = 100


class ParticipantsQuery(PageQuery):
    limit: Annotated[int, Field(ge=1, le=1024)] = 200


class NewChat(Shape):
    type: ChatType
    title: Title | None = None
    avatar_url: HttpsUrl | None = None
    participants: Annotated[
        list[PublicId], Field(max_length=1023, default_factory=list, description="The public ids of others.")
    ]
    settings: Settings | None = None


class ChangeChat(Shape):
    columns: ClassVar[frozenset[str]] = frozenset(("title", "avatar_url", "settings"))

    title: Title | None = None
    avatar_url: HttpsUrl | None = None
    settings: Settings | None = None


class NewParticipant(Shape):
    public_id: PublicId
    role: Literal["admin", "member", "restricted"] = "member"


class ChangeRole(Shape):
    role: Role


class NewInvite(Shape):
    max_uses: Annotated[int, Field(ge=1, le=100_000)] | None = None
    expires_in: Annotated[int, Field(ge=60, le=YEAR, description="Seconds.")] | None = None


class Join(Shape):
    token: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16,64}$")]


class Typing(Shape):
    chat_id: Id


# What they get ------------------------------------------------------------------------------------------------------


class Chat(Thread):
    """A chat as its participant sees it. ``role`` and the watermarks are one's own, ``unread_count`` is of messages of
    others behind ``read_seq``; ``peer`` is the other one of a direct or secret chat, else null."""

    role: Role
    last_seq: int
    read_seq: int
    delivered_seq: int
    unread_count: int
    peer: Person | None
    last_message: Message | None


class Participant(Person):
    role: Role
    joined_at: datetime


class ChatInFull(Chat):
    """With its ``participants``, which are null in a channel."""

    participants: list[Participant] | None


class Place(TypedDict):
    """Somebody's place in a chat."""

    chat_id: UUID
    user_id: UUID
    role: Role


class Invite(TypedDict):
    id: UUID
    chat_id: UUID
    created_by: UUID | None
    max_uses: int | None
    uses: int
    expires_at: datetime | None
    created_at: datetime


class InviteWithToken(Invite):
    token: str
