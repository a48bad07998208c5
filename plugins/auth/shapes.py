"""Requests and responses of ``/auth`` (contract section 2)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from handlers.http.pages import PageQuery
from handlers.passwords import CurrentPassword, NewPassword
from handlers.wire.shapes import Hex256, Id, Int31, Language, PublicId, Shape, Signature
from handlers.wire.signal_keys import CurveKey, KyberPrekey, KyberPrekeys, OneTimePrekeys, SignedPrekey, SigningKey
from handlers.wire.text import EMPTY_IS_NULL, DisplayName

# Names that could be mistaken for a route or an official account.
RESERVED = frozenset(("search", "me", "admin", "support", "mimu", "system"))


def is_reserved(public_id: str) -> bool:
    return public_id.lower() in RESERVED


def _not_reserved(value: str) -> str:
    if is_reserved(value):
        raise ValueError("this name is reserved")
    return value


class Register(Shape):
    public_id: Annotated[
        PublicId,
        AfterValidator(_not_reserved),
        Field(description="Unique whatever the case; not `search`, `me`, `admin`, `support`, `mimu`, `system`."),
    ]
    password: NewPassword
    identity_key: Annotated[
        CurveKey, Field(description="X25519: 32 bytes, or 33 with a leading 0x05 (Signal's form); no low-order point.")
    ]
    fingerprint: Annotated[Hex256, Field(description="SHA-256 of the 32 bytes of `identity_key`.")]
    signing_public_key: SigningKey
    registration_id: Int31
    signed_prekey: SignedPrekey
    one_time_prekeys: OneTimePrekeys = ()
    kyber_prekeys: KyberPrekeys = ()
    last_resort_kyber_prekey: Annotated[
        KyberPrekey | None, Field(description="Handed out when no other is left; it is never used up.")
    ] = None
    display_name: Annotated[DisplayName | None, EMPTY_IS_NULL] = None
    language: Annotated[Language | None, EMPTY_IS_NULL] = None


class AvailabilityQuery(Shape):
    public_id: PublicId


class Login(Shape):
    public_id: Annotated[str, Field(max_length=64)]
    password: CurrentPassword


class Refresh(Shape):
    refresh_token: Annotated[str, Field(max_length=256), AfterValidator(str.lower)]


class ResetPassword(Shape):
    identity_key: CurveKey
    new_password: NewPassword
    challenge: Annotated[str, Field(max_length=256, description="The challenge of the 428 response.")] | None = None
    signature: Signature | None = None


class Logout(Shape):
    all: Annotated[bool, Field(description="Every session of the user's.")] = False


class ChangePassword(Shape):
    old_password: CurrentPassword
    new_password: NewPassword


class Availability(TypedDict):
    """False for ids that an account has or had in the last 180 days, and for reserved ones."""

    available: bool


class SignedIn(Shape):
    """A new session. ``expires_in`` is the lifetime of the access token in seconds: a day unless the operator changes
    it."""

    user_id: Id
    session_id: Id
    access_token: str
    refresh_token: str
    fingerprint: str
    expires_in: int


class Refreshed(Shape):
    access_token: str
    refresh_token: str
    expires_in: int


class SessionsQuery(PageQuery):
    limit: Annotated[int, Field(ge=1, le=1000)] = 1000  # more than users have


class LiveSession(TypedDict):
    """A session that can still be refreshed; ``current`` marks the session of this request. ``last_used_at`` is when it
    was registered, logged in or refreshed."""

    id: UUID
    platform: str | None
    client_version: str | None
    created_at: datetime
    last_used_at: datetime
    current: bool
