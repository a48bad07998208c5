"""What clients send to and get from ``/auth`` (contract section 2)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints
from typing_extensions import TypedDict

from handlers.keys import CurveKey, KyberPrekey, KyberPrekeys, OneTimePrekeys, SignedPrekey, SigningKey
from handlers.shapes import Hex256, Id, Int31, Language, PublicId, Shape, Signature
from handlers.text import EMPTY_IS_NULL, DisplayName

# Names that a route or a person could be mistaken for.
RESERVED = frozenset(("search", "me", "admin", "support", "mimu", "system"))


def _free(value: str) -> str:
    if value.lower() in RESERVED:
        raise ValueError("this name is reserved")
    return value


Password = Annotated[str, StringConstraints(min_length=8, max_length=256)]


class Register(Shape):
    public_id: Annotated[PublicId, AfterValidator(_free)]
    password: Password
    identity_key: CurveKey
    fingerprint: Annotated[Hex256, Field(description="SHA-256 of the 32 bytes of `identity_key`.")]
    signing_public_key: SigningKey
    registration_id: Int31
    signed_prekey: SignedPrekey
    one_time_prekeys: OneTimePrekeys = ()
    kyber_prekeys: KyberPrekeys = ()
    last_resort_kyber_prekey: KyberPrekey | None = None
    display_name: Annotated[DisplayName | None, EMPTY_IS_NULL] = None
    language: Annotated[Language | None, EMPTY_IS_NULL] = None


class Login(Shape):
    public_id: Annotated[str, Field(max_length=64)]
    password: Annotated[str, Field(max_length=256)]


class Refresh(Shape):
    refresh_token: Annotated[str, Field(max_length=256)]


class ResetPassword(Shape):
    identity_key: CurveKey
    new_password: Password
    challenge: Annotated[str, Field(max_length=256, description="What the 428 gave.")] | None = None
    signature: Signature | None = None


class Logout(Shape):
    all: bool = False


class ChangePassword(Shape):
    old_password: Annotated[str, Field(max_length=256)]
    new_password: Password


class SignedIn(Shape):
    """One new session. ``expires_in`` is the access token's life in seconds."""

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


class LiveSession(TypedDict):
    """A session that can still be refreshed; ``current`` is the asking one."""

    id: UUID
    platform: str | None
    client_version: str | None
    created_at: datetime
    last_used_at: datetime
    current: bool
