"""Raw HTTP/1.1: bytes sent on one connection, and the answers to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Any
from urllib.parse import urlsplit

from tests.waiting import WAIT

LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass(frozen=True)
class Answered:
    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def ends(self) -> bool:
        """True if the answer has ``Connection: close``."""
        return str(self.headers.get("Connection", "")).lower() == "close"


class Line:
    """A connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, message: bytes, *, bare: bool = False) -> Answered:
        """Send bytes, and read one answer; ``bare`` is for HEAD."""
        self.writer.write(message)
        return await asyncio.wait_for(self.answer(bare=bare), WAIT)

    async def answer(self, *, bare: bool = False) -> Answered:
        first, _, rest = (await self.reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        status, headers = int(first.split()[1]), BytesHeaderParser().parsebytes(rest)
        length = 0 if bare or status in (100, 204, 304) else int(headers["Content-Length"])
        return Answered(status, headers, await self.reader.readexactly(length))

    async def stays(self) -> bool:
        """True if the server answers another request on this connection."""
        return (await self.ask(LIVE)).json == {"status": "live"}

    async def ended(self) -> bytes:
        """Return the bytes until the server closes. Raises TimeoutError if it doesn't."""
        return await asyncio.wait_for(self.reader.read(), WAIT)


@contextlib.asynccontextmanager
async def line(url: str) -> AsyncIterator[Line]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def request(start: str, body: bytes | None = None, **headers: str) -> bytes:
    """Return a request with its headers; ``_`` in their names becomes ``-``."""
    sent = {"Host": "x", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if body is not None:
        sent = {"Content-Type": "application/json", "Content-Length": str(len(body)), **sent}
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"{start} HTTP/1.1\r\n{head}\r\n".encode() + (body or b"")
