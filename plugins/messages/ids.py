"""Ids of messages, and short hashes that distinguish their payloads."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from uuid import UUID

from asyncpg.pgproto.pgproto import UUID as NativeUUID

_FIXED = 0x7 << 76 | 0x2 << 62  # the version and the variant
_RANDOM = (1 << 80) - 1 & ~(0xF << 76 | 0x3 << 62)
_BYTES, _AHEAD = 10, 400  # bytes of an id's random part; ids per system call, at 4 % of the cost of a call for each


def _random_parts() -> Iterator[int]:
    while True:
        block = os.urandom(_BYTES * _AHEAD)
        for at in range(0, len(block), _BYTES):
            yield int.from_bytes(block[at : at + _BYTES]) & _RANDOM | _FIXED


_parts = _random_parts()


def new_id() -> UUID:
    """Create a UUID of version 7 (RFC 9562). It is ordered by time, so that the index grows at its end.

    Its 74 random bits come from the system. Python's generator would be shared by all users: from 430 of their ids a
    user could compute its state, and then how many messages all others send.
    """
    return NativeUUID((time.time_ns() // 1_000_000 << 80 | next(_parts)).to_bytes(16))


def payload_hash(payload: bytes) -> int:
    """Hash a payload to 8 bytes, to detect a different one under the same client_id. A collision gains nothing."""
    return int.from_bytes(hashlib.blake2b(payload, digest_size=8).digest(), signed=True)
