"""Multipart: an S3 object put together of parts that arrive over hours, from several requests and servers.

What obstore does not do: its multipart uploads live as long as one call. The five requests are signed in their
addresses (sigv4.py) and sent by the standard library from threads, parts straight from a file.
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

TIMEOUT = 20.0  # seconds for a socket that says nothing
QUICK = 1.5  # the same where somebody waits for no more than a yes: within the 2 s of /health
TRIES, FIRST_REST, RESTS = 4, 0.1, 3.0  # 0.1, 0.3, 0.9 s between tries, some more or less: about 1.5 s in all
LAST_TRY = 10.0  # seconds after the first; with TIMEOUT a request takes half a minute at the most
SIGNED_SECONDS = 300
THREADS = 8
BLOCK = 256 * 1024
AGAIN = (408, 429, 500, 502, 503, 504)
_RANDOM = random.SystemRandom()  # peers see these delays: Python's own generator would give its state away


class S3Response(NamedTuple):
    """What S3 answered."""

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
        """See that the bucket is there; make it if that is allowed. Raises StorageAway."""
        told = await self._ask("HEAD", "", patience=QUICK, tries=1)
        if told.status == 404 and create:
            region = self._signer.region
            place = f"<LocationConstraint>{region}</LocationConstraint>" if region != "us-east-1" else ""
            body = f"<CreateBucketConfiguration>{place}</CreateBucketConfiguration>".encode() if place else b""
            told = await self._ask("PUT", "", body=body, patience=QUICK, tries=1)
            if told.status == 409:  # another instance was quicker
                return
        if told.status >= 300:
            raise StorageAway(f"the bucket: {told.status}")

    async def begin(self, key: str) -> str:
        told = await self._ask("POST", key, {"uploads": ""})
        found = re.search(r"<UploadId>([^<]+)</UploadId>", told.text)
        if told.status != 200 or found is None:
            raise StorageAway(f"a multipart upload: {told.status}")
        return html.unescape(found[1])

    async def part(self, key: str, upload_id: str, number: int, part: Part) -> str:
        """Put a part, from 1; its tag. Again replaces it."""
        told = await self._ask("PUT", key, {"partNumber": str(number), "uploadId": upload_id}, part)
        if told.status != 200 or not told.etag:
            raise StorageAway(f"a part: {told.status}")
        return told.etag

    async def complete(self, key: str, upload_id: str, etags: Sequence[str]) -> bool:
        """Put the parts together. False when S3 knows no such upload: it was done before, or taken back."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{html.escape(etag, quote=False)}</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        told = await self._ask("POST", key, {"uploadId": upload_id}, body)
        if told.status == 404:
            return False
        # S3 begins to answer 200 before it knows, and may end in an error.
        if told.status != 200 or "<Error>" in told.text:
            raise StorageAway(f"the end of a multipart upload: {told.status}")
        return True

    async def abort(self, key: str, upload_id: str) -> None:
        told = await self._ask("DELETE", key, {"uploadId": upload_id})
        if told.status not in (200, 204, 404):
            raise StorageAway(f"the abort of a multipart upload: {told.status}")

    async def _ask(
        self,
        method: str,
        key: str,
        query: dict[str, str] | None = None,
        body: bytes | Part = b"",
        *,
        patience: float = TIMEOUT,
        tries: int = TRIES,
    ) -> S3Response:
        def send() -> S3Response:
            rest, last = FIRST_REST, time.monotonic() + LAST_TRY
            for left in reversed(range(tries)):
                try:
                    told = self._once(
                        method, self._signer.sign(method, key, SIGNED_SECONDS, query=query), body, patience
                    )
                    if told.status not in AGAIN:
                        return told
                    cause = str(told.status)
                except (OSError, http.client.HTTPException) as error:
                    cause = type(error).__name__
                if left and time.monotonic() < last:
                    time.sleep(rest * _RANDOM.uniform(0.5, 1.5))
                    rest *= RESTS
                else:
                    break
            raise StorageAway(cause)

        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._threads, send))

    def _once(self, method: str, url: str, body: bytes | Part, patience: float) -> S3Response:
        parts = urlsplit(url)
        if self._secure is not None:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.netloc, timeout=patience, context=self._secure, blocksize=BLOCK
            )
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=patience, blocksize=BLOCK)
        try:
            # Lengths are said by us: http.client would send a file of unknown length in chunks, which S3 doesn't take.
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
            answer = connection.getresponse()
            return S3Response(
                answer.status, answer.headers.get("ETag", ""), answer.read(1 << 20).decode("utf-8", "replace")
            )
        finally:
            connection.close()
