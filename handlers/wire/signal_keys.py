"""Signal keys on the wire: their shapes, and their signatures (Ed25519, and libsignal's XEdDSA)."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from nacl import bindings
from nacl.exceptions import CryptoError
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticKnownError

from handlers.wire.errors import Fault
from handlers.wire.shapes import Base64, Int31, PublicKey, Shape, Signature, base64_schema

_P = 2**255 - 19  # the field of Curve25519

# The u-coordinates of order 1, 2, 4 and 8 (RFC 7748 section 6.1 warns of them): with such a key every shared secret is
# known in advance. Encodings of them that are not canonical fail the other check below.
_LOW_ORDER = {
    value.to_bytes(32, "little")
    for value in (
        0,
        1,
        _P - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    )
}

_WHY = "because this server has SIGNAL_PROFILE=libsignal"
_LIBSIGNAL_SIGNED = f"must be an XEdDSA signature by the identity key over the key's 33 bytes, {_WHY}"
_LIBSIGNAL_KYBER = f"must be an XEdDSA signature by the identity key over a key of 1569 bytes, {_WHY}"

SIGNAL_TYPE = b"\x05"  # the type byte of Signal's 33-byte form of a Curve25519 key
_KYBER_TYPES = (0x08, 0x0A)  # Kyber-1024, ML-KEM-1024


def _curve(value: bytes) -> bytes:
    if int.from_bytes(value, "little") >= _P:
        raise ValueError("must be a canonical Curve25519 key")
    if value in _LOW_ORDER:
        raise ValueError("must not be a low-order point")
    return value


def _edwards(value: bytes) -> bytes:
    if not bindings.crypto_core_ed25519_is_valid_point(value):
        raise ValueError("must be a valid Ed25519 public key")
    return value


def _kyber(value: bytes) -> bytes:
    if len(value) == 1568 or (len(value) == 1569 and value[0] in _KYBER_TYPES):
        return value
    raise ValueError("an ML-KEM-1024 key is 1568 bytes, or 1569 with its type byte")


CurveKey = Annotated[PublicKey, AfterValidator(_curve)]  # no low-order point
SigningKey = Annotated[
    PublicKey, AfterValidator(_edwards), base64_schema("Base64 of an Ed25519 public key, 32 bytes.", "^@{43}=?$")
]
KyberKey = Annotated[
    Base64,
    AfterValidator(_kyber),
    base64_schema(
        "Base64 of 1568 bytes (ML-KEM-1024), or of 1569 with the type byte 08 or 0a.", "^(@{2091}=?|C[A-Pg-v]@{2090})$"
    ),
]


class OneTimePrekey(Shape):
    """A prekey that is handed out once. No two of a request have one ``key_id``."""

    key_id: Int31
    public_key: CurveKey


class SignedPrekey(Shape):
    """The prekey of all bundles, until another one takes its place."""

    key_id: Int31
    public_key: CurveKey
    signature: Signature


class KyberPrekey(Shape):
    """A prekey of PQXDH. The signature is over the key's bytes as they were sent."""

    key_id: Int31
    public_key: KyberKey
    signature: Signature


MAX_PREKEYS = 100  # in one request


def _not_longer(value: Any) -> Any:
    """Reject a list that is too long before its items are checked: pydantic would list the faults of all items."""
    if isinstance(value, list) and len(value) > MAX_PREKEYS:
        bounds = {"field_type": "Tuple", "max_length": MAX_PREKEYS, "actual_length": len(value)}
        raise PydanticKnownError("too_long", bounds)
    return value


_PREKEYS = Field(max_length=MAX_PREKEYS, strict=False), BeforeValidator(_not_longer)
OneTimePrekeys = Annotated[tuple[OneTimePrekey, ...], *_PREKEYS]
KyberPrekeys = Annotated[tuple[KyberPrekey, ...], *_PREKEYS]


class UploadedKeys(Protocol):
    """The key fields that registration and top-up have in common."""

    @property
    def signed_prekey(self) -> SignedPrekey | None: ...
    @property
    def one_time_prekeys(self) -> tuple[OneTimePrekey, ...]: ...
    @property
    def kyber_prekeys(self) -> tuple[KyberPrekey, ...]: ...
    @property
    def last_resort_kyber_prekey(self) -> KyberPrekey | None: ...


def find_faults(keys: UploadedKeys, identity_key: bytes, signing_key: bytes, *, libsignal: bool = False) -> list[Fault]:
    """Return the faults of uploaded keys as a whole: ids that appear twice, signatures that aren't the owner's.

    With ``libsignal`` keys must have the form that libsignal's clients accept (config/signal.py).
    """
    faults: list[Fault] = []
    one_time, kyber_ids = ([key.key_id for key in listed] for listed in (keys.one_time_prekeys, keys.kyber_prekeys))
    for name, ids in (("one_time_prekeys", one_time), ("kyber_prekeys", kyber_ids)):
        faults += [
            Fault(f"{name}[{place}].key_id", "appears twice")
            for place, key_id in enumerate(ids)
            if key_id in ids[:place]
        ]
    signed = [(f"kyber_prekeys[{place}]", key) for place, key in enumerate(keys.kyber_prekeys)]
    if keys.last_resort_kyber_prekey:
        signed.append(("last_resort_kyber_prekey", keys.last_resort_kyber_prekey))
    for name, kyber in signed:
        if libsignal:
            if len(kyber.public_key) != 1569 or not xeddsa(identity_key, kyber.signature, kyber.public_key):
                faults.append(Fault(f"{name}.signature", _LIBSIGNAL_KYBER))
        elif not signed_by(identity_key, signing_key, kyber.signature, kyber.public_key):
            faults.append(Fault(f"{name}.signature", "not a signature by the signing or identity key"))
    prekey = keys.signed_prekey
    if prekey and libsignal:
        if not xeddsa(identity_key, prekey.signature, SIGNAL_TYPE + prekey.public_key):
            faults.append(Fault("signed_prekey.signature", _LIBSIGNAL_SIGNED))
    elif prekey and not signed_by(
        identity_key, signing_key, prekey.signature, prekey.public_key, SIGNAL_TYPE + prekey.public_key
    ):
        faults.append(Fault("signed_prekey.signature", "not a signature by the signing or identity key"))
    return faults


def missing_last_resort() -> Fault:
    """Return the fault of keys without a Kyber key, which libsignal's clients need in a bundle."""
    return Fault("last_resort_kyber_prekey", "required, because this server has SIGNAL_PROFILE=libsignal")


def proves_identity(identity_key: bytes, prekey: SignedPrekey) -> bool:
    """True if the identity key signed the prekey (XEdDSA), which requires its private key."""
    return any(
        xeddsa(identity_key, prekey.signature, message)
        for message in (prekey.public_key, SIGNAL_TYPE + prekey.public_key)
    )


def purchase_messages(prid_hash: str, tier: str) -> tuple[bytes, ...]:
    """Return the messages that a buyer may have signed: the hash in lower case, or in upper case as Swift prints it."""
    return tuple(f"mimu-sub-v1|{text}|{tier}".encode() for text in (prid_hash.lower(), prid_hash.upper()))


def signed_by(identity_key: bytes, signing_key: bytes, signature: bytes, *messages: bytes) -> bool:
    """True if ``signing_key`` (Ed25519) or ``identity_key`` (XEdDSA) signed any of the messages."""
    return any(ed25519(signing_key, signature, message) for message in messages) or any(
        xeddsa(identity_key, signature, message) for message in messages
    )


def ed25519(key: bytes, signature: bytes, message: bytes) -> bool:
    """Check a signature by RFC 8032 with libsodium: no small-order keys, no second form of a signature."""
    try:
        bindings.crypto_sign_open(signature + message, key)
    except (CryptoError, ValueError, TypeError):
        return False
    return True


def xeddsa(key: bytes, signature: bytes, message: bytes) -> bool:
    """Check a signature by a Curve25519 key (Signal's XEdDSA specification, section 2.3).

    The Montgomery u becomes the Edwards y = (u - 1) / (u + 1); the sign of x is in the signature's top bit.
    """
    u = int.from_bytes(key, "little") % _P
    if u == _P - 1 or len(signature) != 64:
        return False
    y = (u - 1) * pow(u + 1, -1, _P) % _P
    sign = signature[63] & 0x80
    point = bytearray(y.to_bytes(32, "little"))
    point[31] |= sign
    bare = signature[:63] + bytes([signature[63] & 0x7F])
    return ed25519(bytes(point), bare, message)
