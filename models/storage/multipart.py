"""Multipart: an S3 object assembled from parts that arrive over hours, through several requests and servers.

obstore can't do this: its multipart uploads last one call. The five requests are signed in their URLs (sigv4.py) and
sent by the standard library from threads, parts straight from a file.
"""

from __future__ import annotations

import asyncio
import html
import http.client
import random
import re
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit

from models.storage import StorageAway
from models.storage.sigv4 import Signer

TIMEOUT = 20.0  # seconds that a socket may be silent
QUICK_TIMEOUT = 1.5  # the same for a check of the bucket: within the 2 s of /health
TRIES, FIRST_PAUSE, PAUSE_FACTOR = 4, 0.1, 3.0  # 0.1, 0.3, 0.9 s between tries, with jitter: about 1.5 s in total
LAST_TRY = 10.0  # seconds after the first; with TIMEOUT a request takes at most half a minute
SIGNED_SECONDS = 300
THREADS = 8
BLOCK = 256 * 1024
RETRIED = (408, 429, 500, 502, 503, 504)  # statuses
_RANDOM = random.SystemRandom()  # peers see these delays: Python's own generator would give its state away


class S3Response(NamedTuple):
    """A response of S3."""

    status: int
    etag: str
    text: str


class Part(NamedTuple):
    """The first ``length`` bytes of a file."""

    file: BinaryIO
    length: int


class Multipart:
    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._secure = ssl.create_default_context() if signer.endpoint.startswith("https:") else None
        self._threads = ThreadPoolExecutor(THREADS, "s3")

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)

    async def bucket(self, *, create: bool) -> None:
        """Check that the bucket exists; create it if that is allowed. Raises StorageAway."""
        response = await self._send("HEAD", "", timeout=QUICK_TIMEOUT, tries=1)
        if response.status == 404 and create:
            region = self._signer.region
            where = f"<LocationConstraint>{region}</LocationConstraint>" if region != "us-east-1" else ""
            body = f"<CreateBucketConfiguration>{where}</CreateBucketConfiguration>".encode() if where else b""
            response = await self._send("PUT", "", body=body, timeout=QUICK_TIMEOUT, tries=1)
            if response.status == 409:  # another instance was quicker
                return
        if response.status >= 300:
            raise StorageAway(f"the bucket: {response.status}")

    async def begin(self, key: str) -> str:
        response = await self._send("POST", key, {"uploads": ""})
        match = re.search(r"<UploadId>([^<]+)</UploadId>", response.text)
        if response.status != 200 or match is None:
            raise StorageAway(f"a multipart upload: {response.status}")
        return html.unescape(match[1])

    async def part(self, key: str, upload_id: str, number: int, part: Part) -> str:
        """Put a part, numbered from 1; repeating replaces it. Returns its ETag."""
        response = await self._send("PUT", key, {"partNumber": str(number), "uploadId": upload_id}, part)
        if response.status != 200 or not response.etag:
            raise StorageAway(f"a part: {response.status}")
        return response.etag

    async def complete(self, key: str, upload_id: str, etags: Sequence[str]) -> bool:
        """Assemble the parts. Returns False if S3 has no such upload: it was completed or aborted before."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{html.escape(etag, quote=False)}</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        response = await self._send("POST", key, {"uploadId": upload_id}, body)
        if response.status == 404:
            return False
        # S3 may send 200 first, and an error in the body.
        if response.status != 200 or "<Error>" in response.text:
            raise StorageAway(f"the end of a multipart upload: {response.status}")
        return True

    async def abort(self, key: str, upload_id: str) -> None:
        response = await self._send("DELETE", key, {"uploadId": upload_id})
        if response.status not in (200, 204, 404):
            raise StorageAway(f"the abort of a multipart upload: {response.status}")

    async def _send(
        self,
        method: str,
        key: str,
        query: dict[str, str] | None = None,
        body: bytes | Part = b"",
        *,
        timeout: float = TIMEOUT,  # noqa: ASYNC109  # of a socket in a thread
        tries: int = TRIES,
    ) -> S3Response:
        def send() -> S3Response:
            pause, last = FIRST_PAUSE, time.monotonic() + LAST_TRY
            for left in reversed(range(tries)):
                try:
                    response = self._send_once(
                        method, self._signer.sign(method, key, SIGNED_SECONDS, query=query), body, timeout
                    )
                    if response.status not in RETRIED:
                        return response
                    cause = str(response.status)
                except (OSError, http.client.HTTPException) as error:
                    cause = type(error).__name__
                if left and time.monotonic() < last:
                    time.sleep(pause * _RANDOM.uniform(0.5, 1.5))
                    pause *= PAUSE_FACTOR
                else:
                    break
            raise StorageAway(cause)

        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._threads, send))

    def _send_once(self, method: str, url: str, body: bytes | Part, timeout: float) -> S3Response:
        parts = urlsplit(url)
        if self._secure is not None:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.netloc, timeout=timeout, context=self._secure, blocksize=BLOCK
            )
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=timeout, blocksize=BLOCK)
        try:
            # We set the length: http.client would send a file of unknown length in chunks, which S3 doesn't accept.
            length = body.length if isinstance(body, Part) else len(body)
            connection.putrequest(method, f"{parts.path}?{parts.query}", skip_accept_encoding=True)
            connection.putheader("Content-Length", str(length))
            connection.endheaders()
            if isinstance(body, Part):
                body.file.seek(0)
                while length > 0:
                    block = body.file.read(min(BLOCK, length))
                    if not block:
                        raise OSError("a part is shorter than it was")
                    connection.send(block)
                    length -= len(block)
            elif body:
                connection.send(body)
            response = connection.getresponse()
            return S3Response(
                response.status, response.headers.get("ETag", ""), response.read(1 << 20).decode("utf-8", "replace")
            )
        finally:
            connection.close()
