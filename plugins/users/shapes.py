"""Requests and responses of ``/users`` (contract section 3)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from config.tiers import Allowance, TierName
from handlers.passwords import CurrentPassword
from handlers.wire.answers import Person
from handlers.wire.avatars import AvatarUrl
from handlers.wire.shapes import Base64, EncodedBase64, Hex256, Language, Shape, max_json_bytes
from handlers.wire.text import EMPTY_IS_NULL, Bio, DisplayName

MAX_SETTINGS = 16 * 1024  # bytes of JSON


class Privacy(Shape):
    last_seen: Literal["everyone", "contacts", "nobody"] | None = None
    add: Literal["everyone", "requests", "contacts"] | None = None


class KnownSettings(Shape):
    """The settings that the server itself uses; all others belong to the client."""

    privacy: Privacy | None = None


def _check_known(value: dict[str, Any]) -> dict[str, Any]:
    try:
        KnownSettings.model_validate(value)
    except ValidationError as error:
        [fault, *_] = error.errors()
        raise ValueError(f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}") from None
    return value


KNOWN = Field(
    description="The app's own, at most 16 KiB of JSON. The server itself reads two keys of `privacy`: `last_seen`, who"
    " sees your presence, is `everyone` (the default), `contacts` (users whom you have verified, called, answered, or"
    " written to in a chat of two, or whose chat you have accepted; what they did does not count) or `nobody`; `add`,"
    " who adds you to chats of many instead of inviting you, is `everyone` (the default), `requests` or `contacts`."
    " Merged: a key that is sent as null is removed, one that is not sent stays; the same for the keys of `privacy`.",
    json_schema_extra={
        "properties": {
            "privacy": {
                "type": ["object", "null"],
                "properties": {
                    "last_seen": {"enum": ["everyone", "contacts", "nobody", None]},
                    "add": {"enum": ["everyone", "requests", "contacts", None]},
                },
            }
        }
    },
)


class SearchQuery(Shape):
    q: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{2,32}$")]


class DeleteMe(Shape):
    password: CurrentPassword


class ChangeMe(Shape):
    columns: ClassVar[frozenset[str]] = frozenset(("display_name", "bio", "avatar_url", "language"))

    display_name: Annotated[DisplayName | None, EMPTY_IS_NULL] = None
    bio: Annotated[Bio | None, EMPTY_IS_NULL] = None
    avatar_url: Annotated[AvatarUrl | None, EMPTY_IS_NULL] = None
    language: Annotated[Language | None, EMPTY_IS_NULL] = None
    settings: Annotated[dict[str, Any], max_json_bytes(MAX_SETTINGS), AfterValidator(_check_known), KNOWN] | None = None
    # Contract section 7: anyone with this key may write to the user's sealed inbox. Signal's has 16 bytes.
    sealed_access_key: Annotated[
        Annotated[Base64, Field(min_length=16, max_length=32)] | None,
        Field(
            description="16 to 32 bytes: anyone with it can write to your sealed inbox. Null closes it. Never shown."
        ),
    ] = None


# Responses ----------------------------------------------------------------------------------------------------------


class UserSearchItem(Person):
    fingerprint: Hex256
    is_online: bool


class UserProfile(Person):
    fingerprint: Hex256
    signing_public_key: EncodedBase64
    bio: str | None
    is_online: bool
    last_seen: datetime | None
    language: str | None
    created_at: datetime


class OwnProfile(UserProfile):
    """Your own profile. ``sealed_chat_id`` is the chat of your sealed inbox, or null; ``limits`` are what your present
    ``tier`` allows."""

    identity_key: EncodedBase64
    settings: dict[str, Any]
    sealed_chat_id: UUID | None
    tier: TierName
    limits: Allowance
