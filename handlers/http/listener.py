"""The listener: Tornado's HTTP server with time limits for connections that stall (contract section 1)."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer, _HTTPRequestContext
from tornado.httputil import HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream

from handlers.http.answers_in_flight import drop
from handlers.http.http1 import READ_HEADERS, ServerConnection
from handlers.http.site import Site
from handlers.sockets.hub import Hub

STALL_SECONDS = 15  # for headers that have begun, and for a body
IDLE_SECONDS = 60  # between requests of a kept-alive connection
# A client must read so many bytes of an answer in that time, or all that is left. Phones on the worst networks do; a
# client slower than 2 KiB/s counts as disconnected.
WRITE_SECONDS, WRITE_BYTES = 30, 64 * 1024
# Unsent bytes of an answer in the kernel. Without this limit a client that reads nothing makes the kernel hold some MiB
# for each connection, which no limit of ours counts. It is enough to keep a connection busy for a round trip.
MAX_UNSENT_BYTES = 128 * 1024
SWEEP_SECONDS = 2
DRAIN_SECONDS = 5  # a request takes at most 3 s
BACKLOG = 1024  # connections waiting for accept: when one of two instances stops, all its phones reconnect at once
HANDSHAKE_SECONDS = 0.02  # for handshakes in progress when the port closes; a proxy is a millisecond away

# A packet filter (BPF, Linux) that drops only packets that open a connection: byte 13 of the TCP header has the flags,
# and such a packet has SYN without ACK.
_DROP_SYN = b"".join(
    struct.pack("HBBI", *instruction)  # struct sock_filter: code, jump if true, jump if false, operand
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte at 13
        (0x54, 0, 0, 0x12),  # and it with SYN|ACK
        (0x15, 0, 1, 0x02),  # is it SYN?
        (0x06, 0, 0, 0),  # then drop the packet
        (0x06, 0, 0, 0xFFFFFFFF),  # else keep it
    )
)
_TCP_NOTSENT_LOWAT = 25  # tcp(7)
_SO_ATTACH_FILTER = 26  # socket(7); Python has no name for it


# All addresses of IPv4 and of IPv6, with a socket for each: a shared one would show IPv4 clients as ::ffff:203.0.113.5.
WILDCARDS = ("::", "*")
EVERY_IPV4, EVERY_IPV6 = "0.0.0.0", "::"
LOOPBACK = {EVERY_IPV4: "127.0.0.1", EVERY_IPV6: "::1"}  # where this machine reaches a wildcard
WITHOUT_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def bind(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listen on all addresses of ``hosts``, on one port; 0 chooses a free one. On a machine without IPv6 a wildcard
    means all addresses of IPv4. Raises OSError that names the address."""
    wanted: dict[str, bool] = {}  # True if the address may be missing
    for host in hosts:
        if host in WILDCARDS:
            wanted = {EVERY_IPV4: False, EVERY_IPV6: True, **wanted}
        else:
            wanted.setdefault(host, False)
    bound: dict[str, socket.socket] = {}
    for host, optional in wanted.items():
        try:
            for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                numeric = str(address[0])
                if numeric not in bound:
                    bound[numeric] = _listen(family, (numeric, port, *address[2:]))
                    port = port or bound[numeric].getsockname()[1]
        except OSError as error:
            if optional and error.errno in WITHOUT_IPV6:
                continue
            for each in bound.values():
                each.close()
            raise OSError(f"Can't listen on PORT {port} of HOST {host}: {error.strerror}") from None
    return list(bound.values())


def authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(family: int, address: tuple[Any, ...]) -> socket.socket:
    each = socket.socket(family, socket.SOCK_STREAM)
    try:
        each.setblocking(False)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        each.bind(address)
        each.listen(BACKLOG)
    except OSError:
        each.close()
        raise
    return each


class Listener(HTTPServer):
    """Serves a Site. Tornado has one time limit for idle connections and slow headers; here a connection that has sent
    part of its headers, or nothing since it was opened, is closed after STALL_SECONDS."""

    def initialize(self, site: Site, **_: Any) -> None:  # type: ignore[override]
        super().initialize(
            site,
            idle_connection_timeout=IDLE_SECONDS,
            body_timeout=STALL_SECONDS,
            max_header_size=READ_HEADERS,
            max_body_size=1 << 40,  # each handler has its own limit, answered in JSON
            chunk_size=64 * 1024,
        )
        self._waiting: dict[HTTP1Connection, float] = {}
        self._reading: dict[object, HTTP1Connection] = {}  # the present request of each connection
        self._writing: dict[object, tuple[float, int]] = {}  # time, and bytes of the answer that were written then
        self._sweeper: asyncio.Task[None] | None = None

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a socket of another kind than TCP
                stream.socket.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)
        context = _HTTPRequestContext(stream, address, self.protocol, self.trusted_downstream)
        connection = ServerConnection(stream, self.conn_params, context)
        self._connections.add(connection)
        connection.start_serving(self)

    def start_request(self, server_conn: object, request_conn: Any) -> HTTPMessageDelegate:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        # A connection's first request must arrive at once; later ones have IDLE_SECONDS.
        first = not getattr(server_conn, "_mimu_served", False)
        server_conn._mimu_served = True  # type: ignore[attr-defined]
        self._waiting[request_conn] = time.monotonic() if first else 0.0
        self._reading[server_conn] = request_conn
        return _HeaderWatch(super().start_request(server_conn, request_conn), request_conn, self)

    def headers_arrived(self, connection: HTTP1Connection) -> None:
        self._waiting.pop(connection, None)
        if self._stopped:
            _close_after_request(connection)

    def forget_request(self, connection: HTTP1Connection) -> None:
        self._waiting.pop(connection, None)

    def on_close(self, server_conn: object) -> None:
        self._reading.pop(server_conn, None)
        self._writing.pop(server_conn, None)
        super().on_close(server_conn)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            self._drop_stalled_readers(now)
            for connection, since in list(self._waiting.items()):
                stream = connection.stream
                if stream is None or stream.closed():
                    del self._waiting[connection]
                elif since:
                    if since < now - STALL_SECONDS:
                        del self._waiting[connection]
                        stream.close()
                # IOStream has no public attribute for "part of a message has arrived".
                elif stream._read_buffer_size:
                    self._waiting[connection] = now

    def _drop_stalled_readers(self, now: float) -> None:
        for served, connection in list(self._reading.items()):
            stream = connection.stream
            if stream is None or stream.closed() or not stream.writing():  # upgraded, or everything was written
                self._writing.pop(served, None)
                continue
            written = stream._total_write_done_index
            since, before = self._writing.get(served, (now, written))
            if written - before >= WRITE_BYTES or served not in self._writing:
                self._writing[served] = now, written
            elif now - since >= WRITE_SECONDS:
                drop(stream)

    async def close(self) -> None:
        """Accept no new connections, and lose none: closing the port resets connections that the kernel has accepted
        for us, and a proxy does not repeat a POST that it has sent. So new connections are dropped for
        HANDSHAKE_SECONDS (clients retry after a second), then those that wait are accepted, then the port is closed.
        Open connections may send one more request each."""
        listening = list(self._sockets.values())
        for port in listening:
            _drop_new_connections(port)
        await asyncio.sleep(HANDSHAKE_SECONDS)
        for port in listening:
            for accepted, address in _accept_waiting(port):
                self._handle_connection(accepted, address)
        self.stop()
        for connection in self._reading.values():
            _close_after_request(connection)

    async def drain(self, seconds: float) -> None:
        """Let requests in flight finish. Idle connections may stay for ``seconds``, because the client that keeps them
        open for its next request should close them. Then close all that are left."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        now = time.monotonic()
        deadline, drain_deadline = now + seconds, now + max(seconds, DRAIN_SECONDS)
        site = self.request_callback
        await asyncio.sleep(0.05)  # connections accepted a moment ago have not been read yet
        while self._connections and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        while isinstance(site, Site) and site.active and time.monotonic() < drain_deadline:
            await asyncio.sleep(0.02)
        await self.close_all_connections()


def _drop_new_connections(port: socket.socket) -> None:
    """Make the kernel drop packets that open a connection. Does nothing on systems other than Linux."""
    if sys.platform == "linux" and port.family in (socket.AF_INET, socket.AF_INET6):
        program = array.array("B", _DROP_SYN)
        address, size = program.buffer_info()
        with contextlib.suppress(OSError):  # not permitted in some sandboxes: then a stop may rarely lose a connection
            port.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", size // 8, address))


def _accept_waiting(port: socket.socket) -> list[tuple[socket.socket, Any]]:
    """Accept and return all waiting connections."""
    accepted: list[tuple[socket.socket, Any]] = []
    with contextlib.suppress(OSError):  # none is left, or the limit of open files is reached
        while len(accepted) <= BACKLOG:
            accepted.append(port.accept())
    return accepted


def _close_after_request(connection: HTTP1Connection) -> None:
    """Close the connection after its present request, with ``Connection: close`` in the answer. WebSockets are
    skipped, and answers that have begun can't carry the header."""
    headers = connection._request_headers
    if connection._response_start_line is None and headers is not None and "Upgrade" not in headers:
        connection._disconnect_on_finish = True  # Tornado decides this when the request arrives


class _HeaderWatch(HTTPMessageDelegate):
    """Forwards everything, and notifies the listener when the headers have arrived."""

    __slots__ = ("_connection", "_delegate", "_listener")

    def __init__(self, delegate: HTTPMessageDelegate, connection: HTTP1Connection, listener: Listener) -> None:
        self._delegate, self._connection, self._listener = delegate, connection, listener

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: Any) -> Any:
        self._listener.headers_arrived(self._connection)
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Any:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._listener.forget_request(self._connection)
        self._delegate.on_connection_close()


async def shut_down(listener: Listener, hub: Hub, site: Site, seconds: float) -> None:
    """Stop accepting, close sockets gradually, and finish requests in flight, within ``seconds``."""
    ends = time.monotonic() + seconds
    await listener.close()
    await hub.close_all(seconds)
    await listener.drain(ends - time.monotonic())
    await asyncio.gather(*site.background, return_exceptions=True)
    site.compressor.close()
