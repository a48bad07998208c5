"""What a message is known by: its id, and the few bytes that tell its payload from another one."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from uuid import UUID

from asyncpg.pgproto.pgproto import UUID as NativeUUID

_FIXED = 0x7 << 76 | 0x2 << 62  # the version and the variant
_RANDOM = (1 << 80) - 1 & ~(0xF << 76 | 0x3 << 62)
_BYTES, _AHEAD = 10, 400  # of an id's random part; ids whose parts are fetched in one system call: it costs 4 % of one


def _random_parts() -> Iterator[int]:
    while True:
        block = os.urandom(_BYTES * _AHEAD)
        for at in range(0, len(block), _BYTES):
            yield int.from_bytes(block[at : at + _BYTES]) & _RANDOM | _FIXED


_parts = _random_parts()


def new_id() -> UUID:
    """A UUID of version 7 (RFC 9562): in the order of time, so that the index grows at its end.

    Its 74 random bits come from the system. Python's generator would be one for all users: 430 ids of one's own give
    its state, and with it how many messages all others send.
    """
    return NativeUUID((time.time_ns() // 1_000_000 << 80 | next(_parts)).to_bytes(16))


def payload_hash(payload: bytes) -> int:
    """Tells a payload from another one in 8 bytes; nobody gains anything by finding two alike."""
    return int.from_bytes(hashlib.blake2b(payload, digest_size=8).digest(), signed=True)
