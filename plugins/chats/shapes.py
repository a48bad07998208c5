"""What clients send to ``/chats`` (contract section 7), and what they get."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, NotRequired, Self
from uuid import UUID

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import TypedDict

from handlers.http.pages import PageQuery
from handlers.wire.answers import ChatType, Message, Person, Role, Thread
from handlers.wire.avatars import AvatarUrl
from handlers.wire.shapes import Id, PublicId, Shape, TimeWithOffset, max_json_bytes
from handlers.wire.text import Title

MAX_SETTINGS = 16 * 1024  # bytes of JSON, as a user's own
YEAR = 366 * 86_400

Settings = Annotated[
    dict[str, Any], max_json_bytes(MAX_SETTINGS), Field(description="The apps' own; at most 16 KiB of JSON.")
]


class ListQuery(PageQuery):
    limit: Annotated[int, Field(ge=1, le=500)] = 100
    hidden: Annotated[bool, Field(description="List the hidden chats instead of the others.")] = False


class ParticipantsQuery(PageQuery):
    limit: Annotated[int, Field(ge=1, le=1024)] = 200


class RemoveQuery(Shape):
    ban: Annotated[bool, Field(description="Nothing lets the user in again.")] = False


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
    archived: Annotated[bool, Field(description="Kept for the apps.")] = False
    muted_until: Annotated[
        TimeWithOffset | None, Field(description="No pushes for messages until then; null ends it.")
    ] = None
    marked_unread: Annotated[bool, Field(description="Until the next receipt with `read_seq`.")] = False


class NewParticipant(Shape):
    public_id: PublicId
    role: Annotated[Literal["admin", "member", "restricted"], Field(description="`admin` by the owner.")] = "member"


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
    """Show the other participants that you are writing.

    They receive it at most once in 3 seconds, and in a channel not at all. It is `forbidden` where you may not post."""

    chat_id: Id


class TypingFrame(TypedDict):
    """A participant is writing. Stored nowhere, without an order; forget it after 5 seconds."""

    type: Literal["typing"]
    chat_id: UUID
    user_id: UUID


# What they get ------------------------------------------------------------------------------------------------------


class Member(Person):
    """A participant. The watermarks are null but in direct chats, and for who has blocked or was blocked."""

    fingerprint: str
    role: Role
    delivered_seq: int | None
    read_seq: int | None


class Participant(Member):
    joined_at: datetime


class _OwnChat(Thread):
    """A chat as its participant sees it."""

    request: NotRequired[
        Annotated[
            bool,
            Field(
                description="An invitation that waits for an answer, made at `updated_at`; participants, messages and"
                " settings are not shown."
            ),
        ]
    ]
    invited_by: NotRequired[Annotated[Person | None, Field(description="Null if that account is deleted.")]]
    role: Annotated[Role, Field(description="Your own; of an invitation the one to come.")]
    last_seq: Annotated[int, Field(description="Of the newest event; of an invitation its own.")]
    read_seq: Annotated[int, Field(description="Your mark.")]
    delivered_seq: Annotated[int, Field(description="Your mark.")]
    unread_count: Annotated[int, Field(description="Messages of others behind `read_seq`.")]
    hidden: Annotated[bool, Field(description="Your own view of it, as the next three.")]
    archived: bool
    muted_until: datetime | None
    marked_unread: bool
    peer: Annotated[Person | None, Field(description="The other user of a direct or secret chat, else null.")]
    last_message: Message | None


class Chat(_OwnChat):
    """A chat as you see it, with at most 8 of its ``participants``: you, the owner and admins first. Readers of a
    channel see no other readers."""

    participants: list[Member]


class Invited(Person):
    """A user who is invited and has not come in. ``by`` is null when that account is gone."""

    by: UUID | None
    invited_at: datetime


class ChatInFull(_OwnChat):
    """A chat as you see it, with all its ``participants``, or null in a channel, and the users who are ``invited``, if
    any. In a channel its owner and admins see these."""

    participants: list[Participant] | None
    invited: NotRequired[list[Invited]]


class BannedUser(Person):
    banned_at: datetime


class Preview(TypedDict):
    """The chat of an invite. ``chat_id`` is null unless you have joined."""

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
    """The role of a user in a chat, or the one of the invitation if they were ``invited``."""

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
