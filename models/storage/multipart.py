"""Multipart: an S3 object assembled from parts that arrive over hours, through several requests and servers."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from models.storage import StorageAway
from models.storage.requests import Part, Requests

QUICK_TIMEOUT = 1.5  # seconds for a check of the bucket: within the 2 s of /health


class Multipart:
    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def bucket(self, *, create: bool) -> None:
        """Check that the bucket exists; create it if that is allowed. Raises StorageAway."""
        answer = await self._requests.ask("HEAD", "", patience=QUICK_TIMEOUT, tries=1)
        if answer.status == 404 and create:
            region = self._requests.region
            place = f"<LocationConstraint>{region}</LocationConstraint>" if region != "us-east-1" else ""
            body = f"<CreateBucketConfiguration>{place}</CreateBucketConfiguration>".encode() if place else b""
            answer = await self._requests.ask("PUT", "", body=body, patience=QUICK_TIMEOUT, tries=1)
            if answer.status == 409:  # another instance was quicker
                return
        if answer.status >= 300:
            raise StorageAway(f"the bucket: {answer.status}")

    async def begin(self, key: str) -> str:
        answer = await self._requests.ask("POST", key, {"uploads": ""})
        match = re.search(r"<UploadId>([^<]+)</UploadId>", answer.text)
        if answer.status != 200 or match is None:
            raise StorageAway(f"a multipart upload: {answer.status}")
        return html.unescape(match[1])

    async def part(self, key: str, upload_id: str, number: int, part: Part) -> str:
        """Put a part, numbered from 1; repeating replaces it. Returns its ETag."""
        answer = await self._requests.ask(
            "PUT", key, {"partNumber": str(number), "uploadId": upload_id}, part, bulk=True
        )
        etag = answer.headers.get("ETag")
        if answer.status != 200 or not etag:
            raise StorageAway(f"a part: {answer.status}")
        return etag

    async def complete(self, key: str, upload_id: str, etags: Sequence[str]) -> bool:
        """Assemble the parts. Returns False if S3 has no such upload: it was completed or aborted before."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{html.escape(etag, quote=False)}</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        answer = await self._requests.ask("POST", key, {"uploadId": upload_id}, body)
        if answer.status == 404:
            return False
        # S3 may send 200 first, and an error in the body.
        if answer.status != 200 or "<Error>" in answer.text:
            raise StorageAway(f"the end of a multipart upload: {answer.status}")
        return True

    async def abort(self, key: str, upload_id: str) -> None:
        answer = await self._requests.ask("DELETE", key, {"uploadId": upload_id})
        if answer.status not in (200, 204, 404):
            raise StorageAway(f"the abort of a multipart upload: {answer.status}")
