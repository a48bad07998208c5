"""Compression: JSON answers as gzip, for clients that accept it (contract section 1)."""

from __future__ import annotations

import asyncio
import re
import zlib
from concurrent.futures import ThreadPoolExecutor

from config.threads import processors, run_only_when_idle

MIN_BYTES = 1024  # shorter answers would save less than the header costs
# Longer answers are compressed in a thread: 32 KiB take 0.4 ms, a page of 1 MiB would block the loop for 20 ms.
MAX_BYTES_IN_LOOP = 32 * 1024
# zlib's fastest level. Level 6 takes 1.4 to 2.3 times as long, and makes pages of messages or people 2 % smaller.
LEVEL = 1

# Routes whose answers contain a token, a relay's password or the secret of a link. Compressed, the length of an answer
# would reveal how much of an attacker's text beside the secret equals it (BREACH, CVE-2013-3587).
_SECRET = re.compile(r"^/(?:auth|devices)(?:/|$)|/invites(?:/|$)|^/calls/turn-credentials$")


class Compressor:
    """Compresses in threads that run only while the event loop is idle."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(processors(), "gzip", initializer=run_only_when_idle)

    async def compress(self, content: bytes) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._threads, compress, content)

    def close(self) -> None:
        self._threads.shutdown()


def compress(content: bytes) -> bytes:
    return zlib.compress(content, LEVEL, wbits=31)


def may_compress(path: str) -> bool:
    """False for routes whose answers contain secrets, which their length must not reveal."""
    return _SECRET.search(path) is None


def accepts_gzip(accepted: str) -> bool:
    """True if an Accept-Encoding header allows gzip: by its name, else by ``*`` (RFC 9110, 12.5.3)."""
    allowed: dict[str, bool] = {}
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";")
        allowed[name.strip()] = re.fullmatch(r"q=0(\.0{0,3})?", weight.replace(" ", "")) is None
    return allowed.get("gzip", allowed.get("x-gzip", allowed.get("*", False)))
