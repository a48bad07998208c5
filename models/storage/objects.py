"""Objects: whole objects of a bucket, by their names."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator

from models.storage import StorageAway
from models.storage.requests import Part, Requests


class Objects:
    """The objects of a bucket. Methods raise StorageAway if S3 does not answer, or answers with an error."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def size(self, name: str) -> int | None:
        """Return the size of an object in bytes; None if there is none."""
        answer = await self._requests.ask("HEAD", name)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise StorageAway(f"a size: {answer.status}")
        return int(answer.headers["Content-Length"])

    async def read(self, name: str, start: int, end: int) -> bytes:
        """Read the bytes from ``start`` to before ``end``. Raises FileNotFoundError if there is no such object."""
        headers = {"Range": f"bytes={start}-{end - 1}"}
        answer = await self._requests.ask("GET", name, headers=headers, bulk=True)
        if answer.status == 404:
            raise FileNotFoundError(name)
        # A server without support for ranges would send 200 with the whole object.
        if answer.status != 206 or len(answer.body) != end - start:
            raise StorageAway(f"a range: {answer.status}")
        return answer.body

    async def put(self, name: str, body: bytes | Part) -> None:
        """Put an object; replaces an existing one."""
        answer = await self._requests.ask("PUT", name, body=body, bulk=True)
        if answer.status != 200:
            raise StorageAway(f"an object: {answer.status}")

    async def remove(self, name: str) -> None:
        """Remove an object, if it exists."""
        answer = await self._requests.ask("DELETE", name)
        if answer.status not in (200, 204, 404):
            raise StorageAway(f"a removal: {answer.status}")

    async def listed(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names that begin with ``prefix``."""
        query = {"list-type": "2", "prefix": prefix}
        while True:
            answer = await self._requests.ask("GET", "", query)
            if answer.status != 200:
                raise StorageAway(f"a list: {answer.status}")
            for name in re.findall(r"<Key>([^<]*)</Key>", answer.text):
                yield html.unescape(name)
            following = re.search(r"<NextContinuationToken>([^<]+)</NextContinuationToken>", answer.text)
            if following is None:
                return
            query["continuation-token"] = html.unescape(following[1])
