"""tus by hand: one request at a time, and broken off where a test wants it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from urllib.parse import urlsplit

from tornado.httpclient import HTTPResponse

from tests.client import Account
from tests.files.transfer import bearer, send

BODY = "application/offset+octet-stream"


def metadata(**values: str) -> str:
    return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in values.items())


def checksum(content: bytes, algorithm: str = "sha1") -> str:
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, content).digest()).decode()}"


class Upload:
    """An upload by its address."""

    def __init__(self, account: Account, url: str) -> None:
        self.account, self.url = account, url
        self.file_id = url.rpartition("/")[2]

    async def ask(self, method: str, body: bytes | None = None, **headers: str) -> HTTPResponse:
        return await send(method, self.url, body, bearer(self.account, Tus_Resumable="1.0.0", **headers))

    async def patch(self, offset: int, content: bytes, **headers: str) -> HTTPResponse:
        headers = {"Content_Type": BODY, "Upload_Offset": str(offset), **headers}
        return await self.ask("PATCH", content, **headers)

    async def offset(self) -> int:
        answer = await self.ask("HEAD")
        assert answer.code == 200, answer.code
        return int(answer.headers["Upload-Offset"])

    @contextlib.asynccontextmanager
    async def broken(self, offset: int, content: bytes, more: int = 1 << 20):  # type: ignore[no-untyped-def]
        """A PATCH that has sent ``content`` and owes ``more``; the block may wait, or break it."""
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = (
            f"PATCH {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {self.account.token}\r\n"
            f"Tus-Resumable: 1.0.0\r\nContent-Type: {BODY}\r\nUpload-Offset: {offset}\r\n"
            f"Content-Length: {len(content) + more}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        await writer.drain()
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def creation(account: Account, size: int | str, body: bytes | None = None, **headers: str) -> HTTPResponse:
    named = bearer(account, Tus_Resumable="1.0.0", Upload_Length=str(size), **headers)
    return await send("POST", f"{account.url}/files/tus", body or b"", named)


async def created(account: Account, size: int, **headers: str) -> Upload:
    answer = await creation(account, size, **headers)
    assert answer.code == 201, answer.body
    return Upload(account, answer.headers["Location"])
