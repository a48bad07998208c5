"""The keys of one device, its sessions with other people, and sender keys for groups, all in memory.

The cipher of ``messaging_client.py``: X3DH and the Double Ratchet from the packages x3dh and doubleratchet. An app
stores all this in an encrypted database, and commits it together with the message that it has read or will send.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import struct
from typing import Any

import doubleratchet
import x3dh
import xeddsa
from doubleratchet.recommended import (
    HashFunction,
    aead_aes_hmac,
    diffie_hellman_ratchet_curve25519,
    kdf_hkdf,
    kdf_separate_hmacs,
)
from nacl.secret import SecretBox
from nacl.signing import SigningKey, VerifyKey
from x3dh.identity_key_pair import IdentityKeyPairSeed


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def unb64(text: str) -> bytes:
    return base64.b64decode(text)


class _Sha256:
    @staticmethod
    def _get_hash_function() -> HashFunction:
        return HashFunction.SHA_256

    @classmethod
    def _get_info(cls) -> bytes:
        return f"mimu example {cls.__name__}".encode()


class RootKdf(_Sha256, kdf_hkdf.KDF): ...


class MessageKdf(_Sha256, kdf_separate_hmacs.KDF): ...


class Aead(_Sha256, aead_aes_hmac.AEAD): ...


class Ratchet(doubleratchet.DoubleRatchet):
    @staticmethod
    def _build_associated_data(associated_data: bytes, header: doubleratchet.Header) -> bytes:
        counts = struct.pack("!II", header.previous_sending_chain_length, header.sending_chain_length)
        return associated_data + header.ratchet_pub + counts


class Agreement(x3dh.BaseState):
    @staticmethod
    def _encode_public_key(key_format: x3dh.IdentityKeyFormat, pub: bytes) -> bytes:
        return pub


RATCHET: dict[str, Any] = {
    "diffie_hellman_ratchet_class": diffie_hellman_ratchet_curve25519.DiffieHellmanRatchet,
    "root_chain_kdf": RootKdf,
    "message_chain_kdf": MessageKdf,
    "message_chain_constant": b"\x01\x02",
    "dos_protection_threshold": 100,
    "max_num_skipped_message_keys": 1000,
    "aead": Aead,
}


class Device:
    """A device whose identity is one Ed25519 key pair; ``identity_key`` is its Curve25519 form. Peers are user ids."""

    def __init__(self) -> None:
        seed = secrets.token_bytes(32)
        self._agreement = Agreement.create(
            x3dh.IdentityKeyFormat.ED_25519, x3dh.HashFunction.SHA_256, b"mimu example", IdentityKeyPairSeed(seed)
        )
        self._agreement.generate_pre_keys(20)
        self._prekeys = dict(enumerate(sorted(self._agreement.bundle.pre_keys), start=1))
        self._sessions: dict[str, tuple[Ratchet, bytes]] = {}
        self._handshakes: dict[str, dict[str, Any]] = {}  # sent with every message until the peer has replied

    def registration(self) -> dict[str, Any]:
        """The key fields of ``POST /auth/register``."""
        bundle = self._agreement.bundle
        identity = xeddsa.ed25519_pub_to_curve25519_pub(bundle.identity_key)
        return {
            "identity_key": b64(identity),
            "signing_public_key": b64(bundle.identity_key),
            "fingerprint": hashlib.sha256(identity).hexdigest(),
            "registration_id": secrets.randbelow(2**14),
            "signed_prekey": {
                "key_id": 1,
                "public_key": b64(bundle.signed_pre_key),
                "signature": b64(bundle.signed_pre_key_sig),
            },
            "one_time_prekeys": [{"key_id": n, "public_key": b64(key)} for n, key in self._prekeys.items()],
        }

    def knows(self, peer: str) -> bool:
        return peer in self._sessions

    async def begin(self, bundle: dict[str, Any], peer: str, text: bytes) -> bytes:
        """Encrypt the first message to a peer by their bundle. x3dh checks the signature of the signed prekey."""
        signing, one_time = unb64(bundle["signing_public_key"]), bundle["one_time_prekey"]
        identity = xeddsa.ed25519_pub_to_curve25519_pub(signing)
        if hashlib.sha256(identity).hexdigest() != bundle["fingerprint"]:
            raise ValueError("The fingerprint belongs to another key.")
        secret, associated, header = await self._agreement.get_shared_secret_active(
            x3dh.Bundle(
                signing,
                unb64(bundle["signed_prekey"]["public_key"]),
                unb64(bundle["signed_prekey"]["signature"]),
                frozenset([unb64(one_time["public_key"])] if one_time else []),
            ),
            require_pre_key=False,
        )
        ratchet, message = await Ratchet.encrypt_initial_message(
            **RATCHET,
            shared_secret=secret,
            recipient_ratchet_pub=header.signed_pre_key,
            message=text,
            associated_data=associated,
        )
        self._sessions[peer] = ratchet, associated
        self._handshakes[peer] = {
            "identity_key": b64(header.identity_key),
            "ephemeral_key": b64(header.ephemeral_key),
            "one_time_prekey": one_time and one_time["key_id"],
        }
        return self._pack(peer, message)

    async def encrypt(self, peer: str, text: bytes) -> bytes:
        ratchet, associated = self._sessions[peer]
        return self._pack(peer, await ratchet.encrypt_message(text, associated))

    async def decrypt(self, peer: str, payload: bytes) -> bytes:
        wire = json.loads(payload)
        header = doubleratchet.Header(unb64(wire["key"]), wire["previous"], wire["count"])
        message = doubleratchet.EncryptedMessage(header, unb64(wire["text"]))
        if wire["handshake"] and peer not in self._sessions:
            return await self._join(peer, wire["handshake"], message)
        ratchet, associated = self._sessions[peer]
        text = await ratchet.decrypt_message(message, associated)
        self._handshakes.pop(peer, None)
        return text

    async def _join(self, peer: str, handshake: dict[str, Any], message: doubleratchet.EncryptedMessage) -> bytes:
        one_time = handshake["one_time_prekey"]
        header = x3dh.Header(
            unb64(handshake["identity_key"]),
            unb64(handshake["ephemeral_key"]),
            self._agreement.bundle.signed_pre_key,
            self._prekeys[one_time] if one_time else None,
        )
        secret, associated, signed = await self._agreement.get_shared_secret_passive(header, require_pre_key=False)
        ratchet, text = await Ratchet.decrypt_initial_message(
            **RATCHET, shared_secret=secret, own_ratchet_priv=signed.priv, message=message, associated_data=associated
        )
        if one_time:  # a one-time prekey is used once
            self._agreement.delete_pre_key(self._prekeys.pop(one_time))
        self._sessions[peer] = ratchet, associated
        return text

    def _pack(self, peer: str, message: doubleratchet.EncryptedMessage) -> bytes:
        wire = {
            "handshake": self._handshakes.get(peer),
            "key": b64(message.header.ratchet_pub),
            "previous": message.header.previous_sending_chain_length,
            "count": message.header.sending_chain_length,
            "text": b64(message.ciphertext),
        }
        return json.dumps(wire).encode()


class SenderKey:
    """The key with which one sender encrypts for a group: a chain that gives each message its key, and a signing key
    pair, so that no other member can write in their name. ``about`` names the chat and the sender.

    A message begins with the public key, by which the reader finds the right sender key. The sender makes a new one
    whenever somebody leaves the group.
    """

    def __init__(self, about: str, chain: bytes, count: int, public: bytes, signing: SigningKey | None = None) -> None:
        self._about, self._chain, self._count = about.encode(), chain, count
        self.public, self._signing = public, signing

    @classmethod
    def generate(cls, about: str) -> SenderKey:
        signing = SigningKey.generate()
        return cls(about, secrets.token_bytes(32), 0, bytes(signing.verify_key), signing)

    @classmethod
    def received(cls, about: str, shared: dict[str, Any]) -> SenderKey:
        return cls(about, unb64(shared["chain"]), shared["count"], unb64(shared["public"]))

    def shared(self) -> dict[str, Any]:
        """The form for members, sent over their sessions. It decrypts later messages, and none before."""
        return {"chain": b64(self._chain), "count": self._count, "public": b64(self.public)}

    def _next(self) -> SecretBox:
        key = hmac.digest(self._chain, b"\x01", "sha256")
        self._chain = hmac.digest(self._chain, b"\x02", "sha256")
        self._count += 1
        return SecretBox(key)

    def encrypt(self, text: bytes) -> bytes:
        assert self._signing is not None
        signed = struct.pack("!I", self._count) + bytes(self._next().encrypt(text))
        return self.public + self._signing.sign(self._about + signed).signature + signed

    def decrypt(self, payload: bytes) -> bytes:
        """Decrypt the next message. A chat has one order, so messages arrive as they were sent. Skip deleted ones.
        Raises ValueError for a message that was read before, and BadSignatureError."""
        signature, signed = payload[32:96], payload[96:]
        VerifyKey(self.public).verify(self._about + signed, signature)
        [count] = struct.unpack("!I", signed[:4])
        if not self._count <= count < self._count + 2000:
            raise ValueError("This message was read before, or too many before it are missing.")
        while self._count < count:
            self._next()
        return bytes(self._next().decrypt(signed[4:]))
