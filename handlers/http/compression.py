"""Compression: JSON answers as gzip, for clients that accept it (contract section 1)."""

from __future__ import annotations

import asyncio
import re
import zlib
from concurrent.futures import ThreadPoolExecutor

from config.threads import processors, step_back

MIN_BYTES = 1024  # bytes; below, the headers weigh more than what is saved
# Bytes that the loop compresses itself, which takes 0.4 ms; a page of 1 MiB would hold it for 20 ms.
MAX_BYTES_IN_LOOP = 32 * 1024
# zlib's fastest. Level 6 takes 1.4 to 2.3 times as long, and makes pages of messages or people 2 % smaller.
LEVEL = 1

# Where answers have a token, a password to a relay or the secret of a link in them. Compressed, their length would say
# how much of what a stranger has put beside it is the same (BREACH, CVE-2013-3587).
_SECRET = re.compile(r"^/(?:auth|devices)(?:/|$)|/invites(?:/|$)|^/calls/turn-credentials$")


class Compressor:
    """Compresses in threads that give way to the loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(processors(), "gzip", initializer=step_back)

    async def compress(self, content: bytes) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._threads, compress, content)

    def close(self) -> None:
        self._threads.shutdown()


def compress(content: bytes) -> bytes:
    return zlib.compress(content, LEVEL, wbits=31)


def may_compress(path: str) -> bool:
    """False for answers whose length must say nothing of what is in them."""
    return _SECRET.search(path) is None


def accepts_gzip(accepted: str) -> bool:
    """True if an Accept-Encoding header allows gzip: by its name, else by ``*`` (RFC 9110, 12.5.3)."""
    allowed: dict[str, bool] = {}
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";")
        allowed[name.strip()] = re.fullmatch(r"q=0(\.0{0,3})?", weight.replace(" ", "")) is None
    return allowed.get("gzip", allowed.get("x-gzip", allowed.get("*", False)))
