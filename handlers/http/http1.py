"""HTTP/1.1 by RFC 9112, where Tornado accepts less: chunk extensions and trailers, absolute URLs in the request line,
`Expect` in capitals, and an answer in JSON to requests that can't be parsed.

Tornado is strict because proxies and servers that read the same bytes differently allow request smuggling. So is this
module: it accepts only the RFC's grammar, only CRLF ends a line, and it drops extensions and trailers; nothing in a
trailer reaches a handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
from collections.abc import Awaitable
from typing import Any

from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httputil import (
    _ABNF,
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    parse_request_start_line,
)
from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError
from tornado.log import gen_log

from handlers.wire.errors import InvalidRequest
from handlers.wire.shapes import encode

MAX_HEADERS = 16 * 1024
# Beyond this Tornado closes the stream at once; between the two limits the client receives an answer.
READ_HEADERS = 4 * MAX_HEADERS
MAX_CHUNK_LINE = 1024  # bytes of a chunk's size line with extensions; a signature takes 80
READ_CHUNK_LINE = 4 * MAX_CHUNK_LINE
# Bytes of extensions that a body may have, as in Go's net/http: 16 for each chunk, two for each byte of data, and this
# once. More would make the server work for very little data (CVE-2023-39326).
SPARE_EXTENSIONS = 16 * 1024
MAX_TRAILERS = 4096  # bytes, all lines together
YIELD_AFTER = 256 * 1024  # bytes read without waiting, after which the reader yields to the loop
CHUNK_COST = 1024  # bytes that a chunk counts there in addition to its data
LINGER_BYTES, LINGER_SECONDS = 1 << 20, 1.0  # read and dropped after an answer that closes the connection

# RFC 9112, 7.1: chunk-size [ BWS ";" BWS name [ BWS "=" BWS (token / quoted-string) ] ]. Without CR, LF and other
# control characters inside: some proxies take a lone LF for the end of the line.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,15})((?:[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*)"
)
_TRAILER = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*")

# RFC 9112, 3.2.2. User information in the authority is rejected, because it can imitate another host.
_ABSOLUTE_URL = re.compile(
    r"https?://((?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)([/?].*)?", re.IGNORECASE
)


class Connection(HTTP1Connection):
    """One request on a server's connection."""

    def _parse_headers(self, data: bytes) -> tuple[str, HTTPHeaders]:
        try:
            if len(data) > MAX_HEADERS:
                raise HTTPInputError(f"The headers are larger than {MAX_HEADERS} bytes.")
            line, headers = super()._parse_headers(data)
            request = parse_request_start_line(line)
            super()._can_keep_alive(request, headers)  # it checks Transfer-Encoding
            if not request.path.startswith("/"):
                request = _to_path(request, headers)
            _check_host(request, headers)
            if headers.get("Expect", "").lower() == "100-continue":
                headers["Expect"] = "100-continue"  # Tornado knows only lower case; RFC 9110, 10.1.1 allows any
            return f"{request.method} {request.path} {request.version}", headers
        except HTTPInputError as error:
            raise self._refused(error) from None

    def _read_body(self, code: int, headers: HTTPHeaders, delegate: HTTPMessageDelegate) -> Awaitable[None] | None:
        try:
            return super()._read_body(code, headers, delegate)
        except HTTPInputError as error:
            raise self._refused(error) from None

    async def _read_chunked_body(self, delegate: HTTPMessageDelegate) -> None:
        try:
            await self._read_chunks(delegate)
        except HTTPInputError as error:
            raise self._refused(error) from None

    async def _read_chunks(self, delegate: HTTPMessageDelegate) -> None:
        """Deliver the data of all chunks, small ones together. Pending data is delivered before waiting for the
        network."""
        pending = bytearray()
        total, spare, work = 0, SPARE_EXTENSIONS, 0

        async def read(coming: Awaitable[bytes]) -> bytes:
            if pending and not (isinstance(coming, asyncio.Future) and coming.done()):
                data = bytes(pending)
                pending.clear()
                await self._deliver_body(delegate, data)
            return await coming

        while True:
            line = await read(self.stream.read_until(b"\r\n", max_bytes=READ_CHUNK_LINE))
            size, extensions = chunk_line(line[:-2])
            if size == 0:
                await self._read_trailers()
                if pending:
                    await self._deliver_body(delegate, bytes(pending))
                return
            total += size
            if total > self._max_body_size:
                raise HTTPInputError("The body is too large.")
            spare = min(spare - extensions + 16 + 2 * size, SPARE_EXTENSIONS)
            if spare < 0:
                raise HTTPInputError("The chunk extensions are too large for the body.")
            while size:
                data = await read(self.stream.read_bytes(min(size, self.params.chunk_size), partial=True))
                size -= len(data)
                pending += data
                work += len(data)
                if work >= YIELD_AFTER:
                    work = 0
                    await asyncio.sleep(0)
                if len(pending) >= self.params.chunk_size:
                    whole = bytes(pending)
                    pending.clear()
                    await self._deliver_body(delegate, whole)
            if await read(self.stream.read_bytes(2)) != b"\r\n":
                raise HTTPInputError("A chunk does not have its declared size.")
            work += CHUNK_COST
            if work >= YIELD_AFTER:
                work = 0
                await asyncio.sleep(0)

    async def _read_trailers(self) -> None:
        left = MAX_TRAILERS
        while left > 0:
            line = await self.stream.read_until(b"\r\n", max_bytes=MAX_TRAILERS)
            if line == b"\r\n":
                return
            if not _TRAILER.fullmatch(line[:-2]):
                raise HTTPInputError("A trailer is not a valid header field.")
            left -= len(line)
        raise HTTPInputError(f"The trailers are larger than {MAX_TRAILERS} bytes.")

    def _refused(self, error: HTTPInputError) -> Exception:
        """Answer bytes that can't be parsed as a request, and close the connection, because the start of the next
        request is unknown. Returns the error to raise, which ends the connection for Tornado."""
        gen_log.info("Malformed HTTP message from %s: %s", self.context, error)
        stream = self.stream
        if stream is not None and self._response_start_line is None:
            stream.write(_answer(InvalidRequest("The request is not valid HTTP.")))
            self.detach().io_loop.add_callback(linger, stream, close=True)
        else:
            self.close()
        return StreamClosedError(real_error=error)


def chunk_line(line: bytes) -> tuple[int, int]:
    """Return the size of a chunk and the length of its extensions. Raises HTTPInputError."""
    match = _CHUNK_LINE.fullmatch(line) if len(line) <= MAX_CHUNK_LINE else None
    if match is None:
        raise HTTPInputError("A chunk has an invalid size or invalid extensions.")
    return int(match[1], 16), len(match[2])


def _to_path(request: RequestStartLine, headers: HTTPHeaders) -> RequestStartLine:
    """Turn an absolute URL into its path; the URL's host replaces the header's (RFC 9112, 3.2.2)."""
    match = _ABSOLUTE_URL.fullmatch(request.path)
    if match is None:
        return request
    if "Host" in headers or request.version == "HTTP/1.0":  # HTTP/1.1 is invalid without it
        if len(headers.get_list("Host")) > 1:
            raise HTTPInputError("There is more than one Host.")
        headers["Host"] = match[1]
    path = match[2] or ("*" if request.method == "OPTIONS" else "/")
    return request._replace(path=path if path[0] in "/*" else f"/{path}")


def _check_host(request: RequestStartLine, headers: HTTPHeaders) -> None:
    """Check the host as HTTPServerRequest does later, when an answer in JSON is impossible. Raises HTTPInputError."""
    host = headers.get("Host", "" if request.version == "HTTP/1.0" else None)
    if host is None or "," in host or not _ABNF.host.fullmatch(host):
        raise HTTPInputError("There must be one Host.")


def _answer(refusal: InvalidRequest) -> bytes:
    request_id = secrets.token_hex(8)
    body = encode({**refusal.body(), "request_id": request_id})
    head = (
        f"HTTP/1.1 400 Bad Request\r\nServer: Mimu\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nX-Request-ID: {request_id}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


async def linger(stream: IOStream, *, close: bool = False) -> None:
    """Shut down our direction, then read and drop some of the data that the client is still sending: closing at once
    would reset the connection, and the client would lose the answer (RFC 9112, 9.6)."""
    if stream.closed():
        return
    left = LINGER_BYTES
    with contextlib.suppress(TimeoutError, StreamClosedError, UnsatisfiableReadError, OSError):
        if not stream.writing():
            stream.socket.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(LINGER_SECONDS):
            while left > 0:
                left -= len(await stream.read_bytes(65536, partial=True))
    if close:
        stream.close()


class ServerConnection(HTTP1ServerConnection):
    """The connection of a client, with its requests one after another."""

    async def _server_request_loop(self, delegate: HTTPServerConnectionDelegate) -> None:
        """Tornado's loop, with our Connection."""
        try:
            while True:
                connection = Connection(self.stream, False, self.params, self.context)
                request: Any = delegate.start_request(self, connection)
                try:
                    goes_on = await connection.read_response(request)
                except (StreamClosedError, UnsatisfiableReadError, asyncio.CancelledError):
                    return
                except Exception:
                    gen_log.error("Uncaught exception", exc_info=True)
                    connection.close()
                    return
                if not goes_on:
                    return
                await asyncio.sleep(0)
        finally:
            delegate.on_close(self)
