"""The cipher of keys.js in Python, in the shape of a Signal implementation, so that a phone can talk with a tab."""

import secrets

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.bindings import crypto_scalarmult
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from tests.client import Account
from tests.phones.signal_protocol import BundleRefused, Json, check_fingerprint, unb64

INFO = b"mimu test cipher"
KEY_BYTES = 32
NONCE_BYTES = 12


class IdentityCipher:
    """A device whose messages are encrypted with what the two identity keys have in common; keys.js says how."""

    bundle_format: str | None = None

    def __init__(self) -> None:
        self._account = Account()
        self._identities: dict[str, bytes] = {}
        self._name = ""

    async def register_body(self) -> Json:
        body = self._account.body()
        return {name: body[name] for name in body.keys() - {"public_id", "password"}}

    async def known_as(self, user_id: str) -> None:
        self._name = user_id

    def has_session(self, peer: str) -> bool:
        return peer in self._identities

    async def check(self, bundle: Json) -> None:
        check_fingerprint(bundle)
        signer, signed = VerifyKey(unb64(bundle["signing_public_key"])), bundle["signed_prekey"]
        try:
            signer.verify(unb64(signed["public_key"]), unb64(signed["signature"]))
        except BadSignatureError as refused:
            raise BundleRefused("the signature of the signed prekey is wrong") from refused

    async def encrypt(self, bundle: Json | None, peer: str, plaintext: bytes) -> bytes:
        if bundle is not None:
            await self.check(bundle)
            self._identities[peer] = unb64(bundle["identity_key"])
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._shared_with(self._identities[peer]).encrypt(nonce, plaintext, f"{self._name} {peer}".encode())
        return self._account.identity_key + nonce + sealed

    async def decrypt(self, peer: str, ciphertext: bytes) -> bytes:
        identity, nonce = ciphertext[:KEY_BYTES], ciphertext[KEY_BYTES : KEY_BYTES + NONCE_BYTES]
        if self._identities.get(peer, identity) != identity:
            raise ValueError("another identity than before")
        sealed = ciphertext[KEY_BYTES + NONCE_BYTES :]
        plaintext = self._shared_with(identity).decrypt(nonce, sealed, f"{peer} {self._name}".encode())
        self._identities[peer] = identity
        return plaintext

    async def sign(self, message: bytes) -> bytes:
        return self._account.signing.sign(message).signature

    async def close(self) -> None:
        """There is nothing to close."""

    def _shared_with(self, identity: bytes) -> AESGCM:
        secret = crypto_scalarmult(bytes(self._account.identity), identity)
        return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=None, info=INFO).derive(secret))
