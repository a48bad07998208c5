"""Requests to S3: signed in their URLs (sigv4.py), sent by the standard library from threads.

Threads, because TLS of a large body would keep the loop busy, and a body goes straight from a file to the socket. Large
bodies have separate threads, so that a request with a short response never waits behind them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import random
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit

from models.storage import StorageAway
from models.storage.sigv4 import Signer

CONNECT = 2.0  # seconds for a connection, with TLS
TIMEOUT = 20.0  # seconds that a socket may be silent, and for a whole response
TRIES, FIRST_PAUSE, PAUSE_FACTOR = 4, 0.1, 3.0  # 0.1, 0.3, 0.9 s between tries, with jitter: about 1.5 s in total
LAST_TRY = 10.0  # seconds after the first; with TIMEOUT a request takes at most half a minute
SIGNED_SECONDS = 300
THREADS = 8  # for short requests, and as many for large bodies
BLOCK = 256 * 1024
LARGEST = 32 << 20  # bytes of an answer that are read
AGAIN = (408, 429, 500, 502, 503, 504)
FAILED = (OSError, http.client.HTTPException)  # no response came, or it is not HTTP
_RANDOM = random.SystemRandom()  # peers see these delays: Python's own generator would give its state away


class S3Response(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class Part(NamedTuple):
    """``length`` bytes of a file, from ``start``."""

    file: BinaryIO
    length: int
    start: int = 0


class Requests:
    """Sends requests to one bucket. A request without a response, or with a temporary error, is sent again; in the end
    StorageAway is raised."""

    def __init__(self, signer: Signer) -> None:
        self.region = signer.region
        self._signer = signer
        self._secure = ssl.create_default_context() if signer.endpoint.startswith("https:") else None
        self._threads = ThreadPoolExecutor(THREADS, "s3")
        self._bulk = ThreadPoolExecutor(THREADS, "s3-bulk")

    async def close(self) -> None:
        for threads in (self._threads, self._bulk):
            await asyncio.to_thread(threads.shutdown)

    async def ask(
        self,
        method: str,
        key: str,
        query: Mapping[str, str] | None = None,
        body: bytes | Part = b"",
        *,
        headers: Mapping[str, str] | None = None,
        bulk: bool = False,
        patience: float = TIMEOUT,
        tries: int = TRIES,
    ) -> S3Response:
        """Send a request for an object, or for the bucket if ``key`` is empty, and return the response; ``bulk`` is for
        large bodies and responses. Raises StorageAway."""

        def send() -> S3Response:
            pause, last = FIRST_PAUSE, time.monotonic() + LAST_TRY
            for left in reversed(range(tries)):
                try:
                    answer = self._send(method, key, query, body, headers or {}, patience)
                    if answer.status not in AGAIN:
                        return answer
                    cause = str(answer.status)
                except FAILED as error:
                    cause = type(error).__name__
                if left and time.monotonic() < last:
                    time.sleep(pause * _RANDOM.uniform(0.5, 1.5))
                    pause *= PAUSE_FACTOR
                else:
                    break
            raise StorageAway(cause)

        threads = self._bulk if bulk else self._threads
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(threads, send))

    async def try_once(
        self,
        method: str,
        key: str,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        patience: float = TIMEOUT,
    ) -> S3Response:
        """Send a request a single time, and return whatever response comes, to find out why S3 can't be used. Raises
        one of FAILED."""
        send = functools.partial(self._send, method, key, query, body, headers or {}, patience)
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._threads, send))

    def _send(
        self,
        method: str,
        key: str,
        query: Mapping[str, str] | None,
        body: bytes | Part,
        headers: Mapping[str, str],
        patience: float,
    ) -> S3Response:
        parts = urlsplit(self._signer.sign(method, key, SIGNED_SECONDS, query=query))
        connection = self._connection(parts.netloc, min(CONNECT, patience))
        try:
            connection.connect()
            connection.sock.settimeout(patience)
            # We set the length: http.client would send a file of unknown length in chunks, which S3 doesn't accept.
            length = body.length if isinstance(body, Part) else len(body)
            connection.putrequest(method, f"{parts.path}?{parts.query}", skip_accept_encoding=True)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                connection.putheader(name, value)
            connection.endheaders()
            with contextlib.suppress(ConnectionError):  # S3 may reject a body, and close before it is sent
                if isinstance(body, Part):
                    _send_part(connection, body)
                elif body:
                    connection.send(body)
            answer = connection.getresponse()
            return S3Response(answer.status, answer.headers, _read(answer))
        finally:
            connection.close()

    def _connection(self, host: str, patience: float) -> http.client.HTTPConnection:
        if self._secure is None:
            return http.client.HTTPConnection(host, timeout=patience, blocksize=BLOCK)
        return http.client.HTTPSConnection(host, timeout=patience, context=self._secure, blocksize=BLOCK)


def _send_part(connection: http.client.HTTPConnection, part: Part) -> None:
    part.file.seek(part.start)
    left = part.length
    while left > 0:
        block = part.file.read(min(BLOCK, left))
        if not block:
            raise OSError("a part is shorter than it was")
        connection.send(block)
        left -= len(block)


def _read(answer: http.client.HTTPResponse) -> bytes:
    """Read the body of a response within TIMEOUT. Raises TimeoutError; IncompleteRead if it ends too early."""
    until, blocks, size = time.monotonic() + TIMEOUT, [], 0
    while block := answer.read(BLOCK):
        blocks.append(block)
        size += len(block)
        if time.monotonic() > until or size > LARGEST:
            raise TimeoutError
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    return b"".join(blocks)
