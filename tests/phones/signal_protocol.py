"""What a phone asks of a Signal implementation, and the checks that every implementation shares."""

import base64
import hashlib
from typing import Any, Protocol

Json = dict[str, Any]


class BundleRefused(Exception):
    """A prekey bundle whose identity, fingerprint or signature doesn't hold."""


class Signal(Protocol):
    """One device's keys and its sessions with others; a peer is named by its user id."""

    bundle_format: str | None
    """The `?format=` in which this implementation wants its bundles."""

    async def register_body(self) -> Json:
        """The key fields of `POST /auth/register`."""

    async def known_as(self, user_id: str) -> None:
        """Set the device's address after the registration; both ends bind their sessions to the names."""

    def has_session(self, peer: str) -> bool: ...

    async def check(self, bundle: Json) -> None:
        """Raise `BundleRefused` unless the bundle's signatures are its owner's."""

    async def encrypt(self, bundle: Json | None, peer: str, plaintext: bytes) -> bytes:
        """Encrypt for `peer`; a bundle starts a session, None goes on with the one there is."""

    async def decrypt(self, peer: str, ciphertext: bytes) -> bytes: ...

    async def sign(self, message: bytes) -> bytes:
        """Sign as the account: an Ed25519 signature by `signing_public_key`."""

    async def close(self) -> None: ...


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def unb64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def fingerprint(identity_key: bytes) -> str:
    """SHA-256 in hex of the 32 bytes, whichever of the two forms the key came in."""
    return hashlib.sha256(raw_key(identity_key)).hexdigest()


def raw_key(key: bytes) -> bytes:
    """The 32 bytes of a Curve25519 key that may have Signal's type byte 0x05."""
    if len(key) == 33 and key[0] == 5:
        return key[1:]
    if len(key) != 32:
        raise BundleRefused(f"a key of {len(key)} bytes")
    return key


def check_fingerprint(bundle: Json) -> None:
    if fingerprint(unb64(bundle["identity_key"])) != bundle["fingerprint"]:
        raise BundleRefused("the fingerprint is not the identity key's")
