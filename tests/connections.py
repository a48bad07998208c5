"""Connections that are kept and used again, as apps and proxies keep theirs.

A server that closes one without saying so fails the test whose next request was sent on it. Nothing is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from io import BytesIO
from urllib.parse import urlsplit

from tornado.httpclient import HTTPRequest, HTTPResponse
from tornado.httputil import HTTPHeaders
from tornado.simple_httpclient import HTTPStreamClosedError, HTTPTimeoutError

from tests.waiting import WAIT

FRESH = 1.0  # seconds a connection is kept for; a server may close one that is idle for longer

_pools: dict[str, Pool] = {}


class ClosedSilently(HTTPStreamClosedError):
    """The server closed a kept connection without sending `Connection: close` before."""


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.used = 0.0  # when it was last answered on

    def close(self) -> None:
        self.writer.close()

    async def exchange(self, message: bytes, method: str) -> tuple[int, HTTPHeaders, bytes, bool]:
        """Status, headers and body of the answer, and whether the connection stays."""
        self.writer.write(message)
        status = 100
        while status in (100, 102, 103):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin1")
            first, _, rest = head.partition("\r\n")
            status, headers = int(first.split()[1]), HTTPHeaders.parse(rest)
        body = b"" if method == "HEAD" or status in (101, 204, 304) else await self._body(headers)
        stays = status != 101 and headers.get("Connection", "").lower() != "close"
        self.used = time.monotonic()
        return status, headers, body, stays

    async def _body(self, headers: HTTPHeaders) -> bytes:
        if headers.get("Transfer-Encoding") != "chunked":
            return await self.reader.readexactly(int(headers["Content-Length"]))
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)
        return body


class Pool:
    """The connections to one server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._netloc = parts.hostname, parts.port, parts.netloc
        self._idle: list[_Connection] = []
        self.loop = asyncio.get_running_loop()

    async def fetch(self, request: HTTPRequest) -> HTTPResponse:
        """As Tornado's client does, on a connection that was used before if there is one."""
        kept = self._take()
        try:
            async with asyncio.timeout(WAIT):
                connection = kept or _Connection(*await asyncio.open_connection(self._host, self._port, limit=64 << 20))
                done = False
                try:
                    status, headers, body, stays = await connection.exchange(self._written(request), request.method)
                    done = stays
                finally:
                    if done:
                        self._idle.append(connection)
                    else:
                        connection.close()
        except TimeoutError:
            raise HTTPTimeoutError(f"no answer within {WAIT} s") from None
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            if kept is not None:
                raise ClosedSilently(f"before {request.method} {request.url}") from error
            if isinstance(error, ConnectionRefusedError):
                raise
            raise HTTPStreamClosedError(str(error)) from error
        reason = HTTPStatus(status).phrase
        return HTTPResponse(request, status, headers=headers, buffer=BytesIO(body), reason=reason)

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if time.monotonic() - connection.used > FRESH:
                connection.close()
            elif connection.reader.at_eof():
                connection.close()
                raise ClosedSilently("after an answer")
            else:
                return connection
        return None

    def _written(self, request: HTTPRequest) -> bytes:
        parts = urlsplit(request.url)
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        headers = HTTPHeaders(request.headers)
        headers.setdefault("Host", self._netloc)
        if request.body is not None or request.method in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = str(len(request.body or b""))
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.get_all())
        return (
            f"{request.method} {path} HTTP/1.1\r\n".encode() + head.encode("latin1") + b"\r\n" + (request.body or b"")
        )

    def forget(self) -> None:
        """Close the kept connections: the server is about to stop."""
        while self._idle:
            self._idle.pop().close()


def pool(url: str) -> Pool | None:
    """The pool of a server that runs just now. None on another loop than the one on which its connections were made."""
    parts = urlsplit(url)
    found = _pools.get(f"{parts.scheme}://{parts.netloc}")
    return found if found is not None and found.loop is asyncio.get_running_loop() else None


@contextlib.asynccontextmanager
async def kept(url: str) -> AsyncIterator[Pool]:
    """While the block runs, requests to that server reuse kept connections."""
    own = _pools[url] = Pool(url)
    try:
        yield own
    finally:
        own.forget()
        if _pools.get(url) is own:
            del _pools[url]
        await asyncio.sleep(0)  # asyncio closes a connection in the loop's next turn
