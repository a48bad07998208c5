"""The listener: Tornado's HTTP server with time limits for connections that stall (contract section 1)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPMessageDelegate, RequestStartLine, ResponseStartLine

from handlers.site import Site

STALL_SECONDS = 15  # for headers that have begun, and for a body
IDLE_SECONDS = 60  # between requests of a kept-alive connection
SWEEP_SECONDS = 2
DRAIN_SECONDS = 5  # a request takes 3 s at the most
MAX_HEADERS = 16 * 1024


class Listener(HTTPServer):
    """Serves a Site. Tornado has one limit for idling and for slow headers; here a connection that has sent part of
    its headers, or nothing since it was opened, has STALL_SECONDS."""

    def initialize(self, site: Site, **_: Any) -> None:  # type: ignore[override]
        super().initialize(
            site,
            idle_connection_timeout=IDLE_SECONDS,
            body_timeout=STALL_SECONDS,
            max_header_size=MAX_HEADERS,
            max_body_size=1 << 40,  # each handler has its own limit, answered in JSON
            chunk_size=64 * 1024,
        )
        self._waiting: dict[HTTP1Connection, float] = {}
        self._sweeper: asyncio.Task[None] | None = None

    def start_request(self, server_conn: object, request_conn: Any) -> HTTPMessageDelegate:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        # A connection's first request must come at once; later ones may take their time to begin.
        first = not getattr(server_conn, "_mimu_served", False)
        server_conn._mimu_served = True  # type: ignore[attr-defined]
        self._waiting[request_conn] = time.monotonic() if first else 0.0
        return _Headers(super().start_request(server_conn, request_conn), request_conn, self._waiting)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for connection, since in list(self._waiting.items()):
                stream = connection.stream
                if stream is None or stream.closed():
                    del self._waiting[connection]
                elif since:
                    if since < now - STALL_SECONDS:
                        del self._waiting[connection]
                        stream.close()
                # IOStream has no public word for "part of a message has come".
                elif stream._read_buffer_size:
                    self._waiting[connection] = now

    async def drain(self) -> None:
        """Take no more connections, let requests in flight finish, then close what is left."""
        self.stop()
        if self._sweeper is not None:
            self._sweeper.cancel()
        deadline = time.monotonic() + DRAIN_SECONDS
        site = self.request_callback
        await asyncio.sleep(0.05)  # what was accepted a moment ago has not been read yet
        while isinstance(site, Site) and site.active and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await self.close_all_connections()


class _Headers(HTTPMessageDelegate):
    """Passes everything on, and notes that the headers have come."""

    __slots__ = ("_connection", "_delegate", "_waiting")

    def __init__(
        self, delegate: HTTPMessageDelegate, connection: HTTP1Connection, waiting: dict[HTTP1Connection, float]
    ) -> None:
        self._delegate, self._connection, self._waiting = delegate, connection, waiting

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: Any) -> Any:
        self._waiting.pop(self._connection, None)
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Any:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._waiting.pop(self._connection, None)
        self._delegate.on_connection_close()
