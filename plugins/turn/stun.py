"""STUN messages (RFC 8489) as far as TURN (RFC 8656) needs them: the doctor's requests to coturn, and its responses."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import struct
from collections.abc import Sequence
from typing import NamedTuple

COOKIE = 0x2112A442
HEADER = 20  # bytes

# RFC 8656 section 17; a request's type is the method itself.
BINDING, ALLOCATE, REFRESH, CREATE_PERMISSION = 0x001, 0x003, 0x004, 0x008
SUCCESS, ERROR = 0x0100, 0x0110
DATA_INDICATION = 0x0017  # data that a peer sent through the relay

# RFC 8489 section 18.3, RFC 8656 section 18
USERNAME, MESSAGE_INTEGRITY, ERROR_CODE = 0x0006, 0x0008, 0x0009
LIFETIME, XOR_PEER_ADDRESS, DATA, REALM, NONCE = 0x000D, 0x0012, 0x0013, 0x0014, 0x0015
XOR_RELAYED_ADDRESS, REQUESTED_ADDRESS_FAMILY, REQUESTED_TRANSPORT = 0x0016, 0x0017, 0x0019
XOR_MAPPED_ADDRESS = 0x0020

FAMILIES = {4: 0x01, 6: 0x02}  # of an IP version
INTEGRITY = 24  # bytes of MESSAGE-INTEGRITY: a header and an HMAC-SHA1

Attribute = tuple[int, bytes]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Malformed(ValueError):
    """The bytes are not a STUN message."""


class Message(NamedTuple):
    """A received message. ``signed`` are the bytes that its MESSAGE-INTEGRITY covers, and their HMAC."""

    kind: int
    transaction: bytes
    attributes: dict[int, bytes]
    signed: tuple[bytes, bytes] | None

    @property
    def error(self) -> int | None:
        """The code of an error, such as 401; None if the message is not an error."""
        if self.kind & ERROR != ERROR:
            return None
        value = self.attributes.get(ERROR_CODE, b"").ljust(4, b"\0")
        return (value[2] & 7) * 100 + value[3]

    def is_signed_by(self, key: bytes) -> bool:
        """True if the message is signed with the key."""
        if self.signed is None:
            return False
        return hmac.compare_digest(hmac.digest(key, self.signed[0], "sha1"), self.signed[1])

    def address(self, attribute: int) -> Address | None:
        """Return the address of an XOR'ed attribute (RFC 8489 section 14.2), without its port."""
        value = self.attributes.get(attribute, b"")
        plain = bytes(one ^ other for one, other in zip(value[4:], _mask(self.transaction), strict=False))
        return ipaddress.ip_address(plain) if len(plain) in (4, 16) else None

    def port(self, attribute: int) -> int:
        """Return the port of an XOR'ed attribute; 0 if there is none."""
        value = self.attributes.get(attribute, b"").ljust(4, b"\0")
        return int(struct.unpack("!H", value[2:4])[0]) ^ (COOKIE >> 16) if any(value) else 0


def key(username: str, realm: bytes, password: str) -> bytes:
    """Return the key of long-term credentials (RFC 8489 section 9.2.2)."""
    # MD5 is not a weakness here: the password is an HMAC, and lives for an hour.
    return hashlib.md5(username.encode() + b":" + realm + b":" + password.encode()).digest()  # noqa: S324


def new_transaction() -> bytes:
    return secrets.token_bytes(12)


def request(method: int, transaction: bytes, attributes: Sequence[Attribute], signing: bytes | None = None) -> bytes:
    """Encode a request, signed with the key ``signing`` if there is one."""
    body = b"".join(struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4) for kind, value in attributes)
    if signing is None:
        return _header(method, len(body), transaction) + body
    # The length counts the signature, which covers the length.
    text = _header(method, len(body) + INTEGRITY, transaction) + body
    return text + struct.pack("!HH", MESSAGE_INTEGRITY, 20) + hmac.digest(signing, text, "sha1")


def _header(kind: int, length: int, transaction: bytes) -> bytes:
    return struct.pack("!HHI", kind, length, COOKIE) + transaction


def length(header: bytes) -> int:
    """Return how many bytes follow a header. Raises Malformed."""
    _, size, cookie = struct.unpack("!HHI", header[:8])
    if cookie != COOKIE or size % 4:
        raise Malformed
    return int(size)


def read(data: bytes) -> Message:
    """Decode a message. Raises Malformed."""
    if len(data) < HEADER or len(data) != HEADER + length(data):
        raise Malformed
    kind, transaction = int(struct.unpack("!H", data[:2])[0]), data[8:HEADER]
    attributes: dict[int, bytes] = {}
    signed = None
    place = HEADER
    while place + 4 <= len(data):
        name, size = struct.unpack("!HH", data[place : place + 4])
        value = data[place + 4 : place + 4 + size]
        if len(value) < size:
            raise Malformed
        if name == MESSAGE_INTEGRITY:
            signed = _header(kind, place + INTEGRITY - HEADER, transaction) + data[HEADER:place], value
            break  # the signature does not cover later attributes
        attributes.setdefault(name, value)
        place += 4 + size + -size % 4
    return Message(kind, transaction, attributes, signed)


def xored(attribute: int, address: Address, port: int, transaction: bytes) -> Attribute:
    """Encode an address as an XOR'ed attribute (RFC 8489 section 14.2)."""
    mask = _mask(transaction)
    plain = bytes(one ^ other for one, other in zip(address.packed, mask, strict=False))
    return attribute, struct.pack("!BBH", 0, FAMILIES[address.version], port ^ (COOKIE >> 16)) + plain


def _mask(transaction: bytes) -> bytes:
    return struct.pack("!I", COOKIE) + transaction
