"""Requests and responses of ``/push`` (contract section 9)."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AfterValidator, Field, StringConstraints
from typing_extensions import TypedDict

from handlers.wire.shapes import Base64, EncodedBase64, Id, Moment, Shape, TimeWithOffset, base64_schema, https_parts
from plugins.push.providers.client import HTTPS, allowed

MAX_MUTED = 500  # chats; a longer list only fills our disk

Provider = Literal["apns", "apns_voip", "fcm", "webpush"]
Environment = Literal["production", "sandbox"]
Style = Literal["alert", "background"]
Kind = Literal["message_new", "call_offer", "prekeys_low"]
KINDS: tuple[Kind, ...] = (
    "message_new",
    "call_offer",
    "prekeys_low",
)  # call_hangup follows its offer


def _endpoint(value: str) -> str:
    """Check the form of an endpoint. Its IP address is checked when connecting."""
    parts = https_parts(value)
    if not allowed(HTTPS if parts.port is None else parts.port):
        raise ValueError("the port must be 443 or above 1023")
    if "@" in parts.netloc or parts.fragment:
        raise ValueError("must contain neither user information nor a fragment")
    return value


def _point(value: bytes) -> bytes:
    """Check that the value is an uncompressed point of P-256 (RFC 8291 section 3.1)."""
    if len(value) != 65:
        raise ValueError("a key is 65 bytes")
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), value)
    except ValueError:
        raise ValueError("not a point of P-256") from None
    return value


class BrowserKeys(Shape):
    p256dh: Annotated[
        Base64, AfterValidator(_point), base64_schema("Base64 of a point of P-256, 65 bytes.", "^B[A-P]@{85}=?$")
    ]
    auth: Annotated[Base64, Field(min_length=16, max_length=16), base64_schema("Base64 of 16 bytes.", "^@{22}(==)?$")]


class BrowserSubscription(Shape):
    """A subscription in the form that browsers and UnifiedPush distributors return."""

    endpoint: Annotated[
        str,
        StringConstraints(max_length=2048),
        AfterValidator(_endpoint),
        Field(description="https, port 443 or above 1023."),
    ]
    keys: BrowserKeys


class Registration(Shape):
    provider: Provider
    token: Annotated[
        Annotated[str, StringConstraints(pattern=r"^[!-~]{1,4096}$")] | None,
        Field(description="For all but `webpush`; hexadecimal for `apns` and `apns_voip`."),
    ] = None
    subscription: Annotated[BrowserSubscription | None, Field(description="For `webpush`.")] = None
    environment: Annotated[Environment, Field(description="Of APNs; `sandbox` for builds of developers.")] = (
        "production"
    )
    style: Annotated[Style, Field(description="Of `apns`; `background` for pushes that show nothing.")] = "alert"


class Token(Shape):
    """A token as its owner sees it, without the token itself. ``current`` is true if it belongs to the session of this
    request, ``available`` if this server sends through that provider."""

    id: UUID
    provider: Provider
    environment: Environment
    style: Style
    session_id: UUID
    current: bool
    available: bool
    registered_at: Moment


class ApplicationServerKey(TypedDict):
    """``public_key`` has 65 bytes. ``application_server_key`` is the same, as browsers and UnifiedPush need it:
    URL-safe, not padded."""

    public_key: EncodedBase64
    application_server_key: str


# Settings -----------------------------------------------------------------------------------------------------------


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # the name of a folder in the database raises OSError
        raise ValueError("no such time zone") from None
    return value


Clock = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Zone = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}$")]


class QuietHours(Shape):
    """From ``start`` to ``end``, past midnight if ``end`` is earlier. Pushes of this time wait until the end."""

    start: Clock
    end: Clock
    time_zone: Annotated[Zone, AfterValidator(_zone), Field(description="By its IANA name.")] = "UTC"
    calls: Annotated[bool, Field(description="True if calls ring during quiet hours.")] = True


class Muted(Shape):
    chat_id: Id
    until: Annotated[TimeWithOffset | None, Field(description="Null: for good.")] = None


class Preferences(Shape):
    """Which events wake a user's devices, and when."""

    kinds: list[Kind] = Field(default_factory=lambda: [*KINDS], max_length=len(KINDS))
    quiet_hours: QuietHours | None = None
    muted_chats: list[Muted] = Field(default_factory=list, max_length=MAX_MUTED)
