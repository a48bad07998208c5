"""Requests and responses of ``/chats`` (contract section 7)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, NotRequired, Self
from uuid import UUID

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import TypedDict

from handlers.http.pages import PageQuery
from handlers.wire.answers import ChatType, Message, Person, Role, Thread
from handlers.wire.avatars import AvatarUrl
from handlers.wire.shapes import Id, PublicId, Shape, Until, bounded
from handlers.wire.text import Title

MAX_SETTINGS = 16 * 1024  # bytes of JSON, as for the settings of a user
YEAR = 366 * 86_400

Settings = Annotated[dict[str, Any], bounded(MAX_SETTINGS), Field(description="The apps' own; at most 16 KiB of JSON.")]


class ListQuery(PageQuery):
    limit: Annotated[int, Field(ge=1, le=500)] = 100
    hidden: Annotated[bool, Field(description="List the hidden chats instead of the others.")] = False


class ParticipantsQuery(PageQuery):
    limit: Annotated[int, Field(ge=1, le=1024)] = 200


class RemoveQuery(Shape):
    ban: Annotated[bool, Field(description="The user can't come back until the ban is lifted.")] = False


class BansQuery(PageQuery):
    limit: Annotated[int, Field(ge=1, le=500)] = 100


class NewChat(Shape):
    type: ChatType
    title: Title | None = None
    avatar_url: AvatarUrl | None = None
    participants: Annotated[
        list[PublicId], Field(max_length=1023, default_factory=list, description="The public ids of others.")
    ]
    settings: Settings | None = None


class ChangeChat(Shape):
    columns: ClassVar[frozenset[str]] = frozenset(("title", "avatar_url", "settings"))

    title: Title | None = None
    avatar_url: AvatarUrl | None = None
    settings: Settings | None = None


class ChangeView(Shape):
    columns: ClassVar[frozenset[str]] = frozenset(("hidden", "archived", "muted_until", "marked_unread"))

    hidden: Annotated[bool, Field(description="Leave it out of the list until there is a new message.")] = False
    archived: bool = False
    muted_until: Annotated[Until | None, Field(description="No pushes for messages until then; null ends it.")] = None
    marked_unread: Annotated[bool, Field(description="Until the next receipt with `read_seq`.")] = False


class NewParticipant(Shape):
    public_id: PublicId
    role: Literal["admin", "member", "restricted"] = "member"


class ChangeRole(Shape):
    role: Role


class Decline(Shape):
    chat_ids: Annotated[list[Id], Field(max_length=500, description="Into these chats.")] | None = None
    all: Annotated[bool, Field(description="All invitations instead.")] = False
    block: Annotated[bool, Field(description="Block the users who made them, too.")] = False

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.all == (self.chat_ids is not None):
            raise ValueError("either chat_ids or all")
        return self


class NewInvite(Shape):
    max_uses: Annotated[int, Field(ge=1, le=100_000)] | None = None
    expires_in: Annotated[int, Field(ge=60, le=YEAR, description="Seconds.")] | None = None


class Join(Shape):
    token: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16,64}$")]


class Typing(Shape):
    chat_id: Id


class TypingFrame(TypedDict):
    """A participant is writing. Stored nowhere, without an order; forget it after 5 seconds."""

    type: Literal["typing"]
    chat_id: UUID
    user_id: UUID


# Responses -----------------------------------------------------------------------------------------------------


class Member(Person):
    """A participant. The watermarks are null except in a direct chat without a block between the two."""

    fingerprint: str
    role: Role
    delivered_seq: int | None
    read_seq: int | None


class Participant(Member):
    joined_at: datetime


class _OwnChat(Thread):
    """A chat as its participant sees it. ``role`` and the watermarks are your own. ``unread_count`` counts messages by
    others after ``read_seq``. ``peer`` is the other user of a direct or secret chat, else null. ``hidden``,
    ``archived``, ``muted_until`` and ``marked_unread`` are your own settings.

    With ``request`` it is an open invitation: ``role`` is the role that you would have, ``invited_by`` the inviter, and
    ``updated_at`` its time; participants, messages and settings are not shown."""

    request: NotRequired[bool]
    invited_by: NotRequired[Person | None]
    role: Role
    last_seq: int
    read_seq: int
    delivered_seq: int
    unread_count: int
    hidden: bool
    archived: bool
    muted_until: datetime | None
    marked_unread: bool
    peer: Person | None
    last_message: Message | None


class Chat(_OwnChat):
    """A chat with at most 8 of its ``participants``: you, the owner and admins first. Readers of a channel see no other
    readers."""

    participants: list[Member]


class Invited(Person):
    """An invited user who is not in the chat. ``by`` is null if that account is gone."""

    by: UUID | None
    invited_at: datetime


class ChatInFull(_OwnChat):
    """A chat with all its ``participants``, which are null in a channel, and ``invited`` users, if there are any. In a
    channel only the owner and admins see these."""

    participants: list[Participant] | None
    invited: NotRequired[list[Invited]]


class BannedUser(Person):
    banned_at: datetime


class Preview(TypedDict):
    """The chat that an invite leads to. ``chat_id`` is null unless you have already joined."""

    chat_id: UUID | None
    type: ChatType
    title: str | None
    avatar_url: str | None
    participant_count: int
    joined: bool


class ParticipantRole(TypedDict):
    """The role of a user in a chat."""

    chat_id: UUID
    user_id: UUID
    role: Role


class AddedParticipant(ParticipantRole):
    """The role of a user in a chat; if ``invited``, the role that they would have."""

    invited: bool


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
