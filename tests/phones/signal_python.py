"""A Signal device made of the packages x3dh and doubleratchet: X3DH key agreement and the Double Ratchet, in memory.

Its identity is one Ed25519 key pair: `signing_public_key` is its Edwards form, `identity_key` its Curve25519 form, so
that the signature of the signed prekey is a plain Ed25519 one over the 32 bytes.
"""

import json
import secrets
import struct
from typing import Self

import doubleratchet
import x3dh
import xeddsa
from doubleratchet.recommended import HashFunction as RatchetHash
from doubleratchet.recommended import aead_aes_hmac, diffie_hellman_ratchet_curve25519, kdf_hkdf, kdf_separate_hmacs
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey
from x3dh.identity_key_pair import IdentityKeyPairSeed

from tests.phones.signal_protocol import BundleRefused, Json, b64, check_fingerprint, fingerprint, unb64


class _Agreement(x3dh.BaseState):
    @staticmethod
    def _encode_public_key(key_format: x3dh.IdentityKeyFormat, pub: bytes) -> bytes:
        return pub


class _RootKdf(kdf_hkdf.KDF):
    @staticmethod
    def _get_hash_function() -> RatchetHash:
        return RatchetHash.SHA_256

    @staticmethod
    def _get_info() -> bytes:
        return b"mimu test phone root"


class _MessageKdf(kdf_separate_hmacs.KDF):
    @staticmethod
    def _get_hash_function() -> RatchetHash:
        return RatchetHash.SHA_256


class _Aead(aead_aes_hmac.AEAD):
    @staticmethod
    def _get_hash_function() -> RatchetHash:
        return RatchetHash.SHA_256

    @staticmethod
    def _get_info() -> bytes:
        return b"mimu test phone message"


class _Ratchet(doubleratchet.DoubleRatchet):
    @staticmethod
    def _build_associated_data(associated_data: bytes, header: doubleratchet.Header) -> bytes:
        counts = struct.pack("!II", header.previous_sending_chain_length, header.sending_chain_length)
        return struct.pack("!I", len(associated_data)) + associated_data + header.ratchet_pub + counts

    @classmethod
    async def begin(
        cls, secret: bytes, peer_key: bytes, message: bytes, associated_data: bytes
    ) -> tuple[Self, doubleratchet.EncryptedMessage]:
        return await cls.encrypt_initial_message(
            diffie_hellman_ratchet_class=diffie_hellman_ratchet_curve25519.DiffieHellmanRatchet,
            root_chain_kdf=_RootKdf,
            message_chain_kdf=_MessageKdf,
            message_chain_constant=b"\x01\x02",
            dos_protection_threshold=100,
            max_num_skipped_message_keys=1000,
            aead=_Aead,
            shared_secret=secret,
            recipient_ratchet_pub=peer_key,
            message=message,
            associated_data=associated_data,
        )

    @classmethod
    async def join(
        cls, secret: bytes, own_key: bytes, message: doubleratchet.EncryptedMessage, associated_data: bytes
    ) -> tuple[Self, bytes]:
        return await cls.decrypt_initial_message(
            diffie_hellman_ratchet_class=diffie_hellman_ratchet_curve25519.DiffieHellmanRatchet,
            root_chain_kdf=_RootKdf,
            message_chain_kdf=_MessageKdf,
            message_chain_constant=b"\x01\x02",
            dos_protection_threshold=100,
            max_num_skipped_message_keys=1000,
            aead=_Aead,
            shared_secret=secret,
            own_ratchet_priv=own_key,
            message=message,
            associated_data=associated_data,
        )


class _Session:
    """A ratchet with one peer; `handshake` travels with every message until the peer has answered once."""

    def __init__(self, ratchet: _Ratchet, associated_data: bytes, ephemeral: str, handshake: Json | None) -> None:
        self.ratchet = ratchet
        self.associated_data = associated_data
        self.ephemeral = ephemeral
        self.handshake = handshake


class SignalPython:
    """A device with `one_time` one-time prekeys. Its messages are JSON: X3DH's part, the ratchet's header, the text."""

    bundle_format: str | None = None

    def __init__(self, one_time: int = 20) -> None:
        seed = secrets.token_bytes(32)
        self._signing = SigningKey(seed)
        self._identity = xeddsa.ed25519_pub_to_curve25519_pub(bytes(self._signing.verify_key))
        self._agreement = _Agreement.create(
            identity_key_format=x3dh.IdentityKeyFormat.ED_25519,
            hash_function=x3dh.HashFunction.SHA_256,
            info=b"mimu test phone",
            identity_key_pair=IdentityKeyPairSeed(seed),
        )
        self._agreement.generate_pre_keys(one_time)
        self._one_time = dict(enumerate(sorted(self._agreement.bundle.pre_keys), start=1))
        self._signed = {1: self._agreement.bundle.signed_pre_key}
        self._sessions: dict[str, _Session] = {}
        self._name = ""

    async def register_body(self) -> Json:
        bundle = self._agreement.bundle
        return {
            "identity_key": b64(self._identity),
            "signing_public_key": b64(bytes(self._signing.verify_key)),
            "fingerprint": fingerprint(self._identity),
            "registration_id": secrets.randbelow(2**31),
            "signed_prekey": {
                "key_id": 1,
                "public_key": b64(bundle.signed_pre_key),
                "signature": b64(bundle.signed_pre_key_sig),
            },
            "one_time_prekeys": [{"key_id": n, "public_key": b64(key)} for n, key in self._one_time.items()],
        }

    async def known_as(self, user_id: str) -> None:
        self._name = user_id

    def has_session(self, peer: str) -> bool:
        return peer in self._sessions

    async def check(self, bundle: Json) -> None:
        check_fingerprint(bundle)
        signing = unb64(bundle["signing_public_key"])
        if xeddsa.ed25519_pub_to_curve25519_pub(signing) != unb64(bundle["identity_key"]):
            raise BundleRefused("the signing key is not the identity's")
        signed = bundle["signed_prekey"]
        try:
            VerifyKey(signing).verify(unb64(signed["public_key"]), unb64(signed["signature"]))
        except BadSignatureError as refused:
            raise BundleRefused("the signature of the signed prekey is wrong") from refused

    async def encrypt(self, bundle: Json | None, peer: str, plaintext: bytes) -> bytes:
        if bundle is not None:
            return await self._begin(bundle, peer, plaintext)
        session = self._sessions[peer]
        message = await session.ratchet.encrypt_message(plaintext, session.associated_data)
        return _to_wire(session.handshake, message)

    async def decrypt(self, peer: str, ciphertext: bytes) -> bytes:
        handshake, message = _from_wire(ciphertext)
        session = self._sessions.get(peer)
        if handshake is not None and (session is None or session.ephemeral != handshake["ephemeral_key"]):
            return await self._join(peer, handshake, message)
        if session is None:
            raise KeyError(f"no session with {peer}")
        plaintext = await session.ratchet.decrypt_message(message, session.associated_data)
        session.handshake = None
        return plaintext

    async def sign(self, message: bytes) -> bytes:
        return bytes(self._signing.sign(message).signature)

    async def close(self) -> None:
        self._sessions.clear()

    async def _begin(self, bundle: Json, peer: str, plaintext: bytes) -> bytes:
        await self.check(bundle)
        signed, one_time = bundle["signed_prekey"], bundle.get("one_time_prekey")
        secret, associated_data, header = await self._agreement.get_shared_secret_active(
            x3dh.Bundle(
                identity_key=unb64(bundle["signing_public_key"]),
                signed_pre_key=unb64(signed["public_key"]),
                signed_pre_key_sig=unb64(signed["signature"]),
                pre_keys=frozenset([unb64(one_time["public_key"])] if one_time else []),
            ),
            associated_data_appendix=f"{self._name}|{peer}".encode(),
            require_pre_key=False,
        )
        handshake = {
            "identity_key": b64(header.identity_key),
            "ephemeral_key": b64(header.ephemeral_key),
            "signed_prekey_id": signed["key_id"],
            "one_time_prekey_id": one_time["key_id"] if one_time else None,
        }
        ratchet, message = await _Ratchet.begin(secret, header.signed_pre_key, plaintext, associated_data)
        self._sessions[peer] = _Session(ratchet, associated_data, handshake["ephemeral_key"], handshake)
        return _to_wire(handshake, message)

    async def _join(self, peer: str, handshake: Json, message: doubleratchet.EncryptedMessage) -> bytes:
        one_time = handshake["one_time_prekey_id"]
        header = x3dh.Header(
            identity_key=unb64(handshake["identity_key"]),
            ephemeral_key=unb64(handshake["ephemeral_key"]),
            signed_pre_key=self._signed[handshake["signed_prekey_id"]],
            pre_key=None if one_time is None else self._one_time[one_time],
        )
        secret, associated_data, signed = await self._agreement.get_shared_secret_passive(
            header, associated_data_appendix=f"{peer}|{self._name}".encode(), require_pre_key=False
        )
        ratchet, plaintext = await _Ratchet.join(secret, signed.priv, message, associated_data)
        if one_time is not None:
            self._agreement.delete_pre_key(self._one_time.pop(one_time))
        self._sessions[peer] = _Session(ratchet, associated_data, handshake["ephemeral_key"], None)
        return plaintext


def _to_wire(handshake: Json | None, message: doubleratchet.EncryptedMessage) -> bytes:
    header = message.header
    return json.dumps(
        {
            "x3dh": handshake,
            "ratchet_key": b64(header.ratchet_pub),
            "previous_count": header.previous_sending_chain_length,
            "count": header.sending_chain_length,
            "text": b64(message.ciphertext),
        }
    ).encode()


def _from_wire(ciphertext: bytes) -> tuple[Json | None, doubleratchet.EncryptedMessage]:
    wire = json.loads(ciphertext)
    header = doubleratchet.Header(unb64(wire["ratchet_key"]), wire["previous_count"], wire["count"])
    return wire["x3dh"], doubleratchet.EncryptedMessage(header, unb64(wire["text"]))
