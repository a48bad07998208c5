"""What clients send to ``/chats`` (contract section 7)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from handlers.pages import PageQuery
from handlers.shapes import HttpsUrl, Id, PublicId, Shape, Title, bounded

MAX_SETTINGS = 16 * 1024  # bytes of JSON, as a user's own
YEAR = 366 * 86_400

Settings = Annotated[dict[str, Any], bounded(MAX_SETTINGS)]
Role = Literal["owner", "admin", "member", "restricted"]


class ListQuery(PageQuery):
    limit: Annotated[int, Field(ge=1, le=500)] = 100


class ParticipantsQuery(PageQuery):
    limit: Annotated[int, Field(ge=1, le=1024)] = 200


class NewChat(Shape):
    type: Literal["direct", "group", "channel", "secret", "cloud"]
    title: Title | None = None
    avatar_url: HttpsUrl | None = None
    participants: Annotated[list[PublicId], Field(max_length=1023, default_factory=list)]
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
    expires_in: Annotated[int, Field(ge=60, le=YEAR)] | None = None


class Join(Shape):
    token: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16,64}$")]


class Typing(Shape):
    chat_id: Id
