"""Requests and responses of the prekey endpoints (contract section 3)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, NotRequired
from uuid import UUID

from pydantic import Field
from typing_extensions import TypedDict

from handlers.wire.shapes import EncodedBase64, Hex256, Int31, Shape
from handlers.wire.signal_keys import KyberPrekey, KyberPrekeys, OneTimePrekeys, SignedPrekey


class BundleQuery(Shape):
    format: Annotated[
        Literal["raw", "signal"],
        Field(description="`signal`: curve keys with Signal's type byte, 33 bytes."),
    ] = "raw"


class Upload(Shape):
    signed_prekey: SignedPrekey | None = None
    one_time_prekeys: OneTimePrekeys = ()
    kyber_prekeys: KyberPrekeys = ()
    last_resort_kyber_prekey: KyberPrekey | None = None


# Responses ----------------------------------------------------------------------------------------------------------


class UnsignedKey(TypedDict):
    id: UUID
    key_id: Int31
    public_key: EncodedBase64


class SignedKey(UnsignedKey):
    signature: EncodedBase64


class Bundle(TypedDict):
    """``one_time_prekey`` is null if none is left. ``kyber_prekey`` is present if the owner has uploaded any: a
    one-time one, or the last-resort one, which stays."""

    identity_key: EncodedBase64
    signing_public_key: EncodedBase64
    registration_id: Int31
    fingerprint: Hex256
    signed_prekey: SignedKey
    one_time_prekey: UnsignedKey | None
    kyber_prekey: NotRequired[SignedKey]


class SignedPrekeyNow(TypedDict):
    """The current signed prekey."""

    key_id: Int31
    created_at: datetime


class Supply(TypedDict):
    """The keys that are left."""

    one_time_remaining: int
    kyber_remaining: int
    signed_prekey: SignedPrekeyNow | None


class PrekeysLow(TypedDict):
    """Fewer than 10 one-time prekeys are left: upload more. Sent after `ready` with 0 if none is left."""

    type: Literal["prekeys_low"]
    remaining: int


def prekeys_low(remaining: int) -> PrekeysLow:
    return {"type": "prekeys_low", "remaining": remaining}
