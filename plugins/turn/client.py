"""A TURN client that requests relays and permissions, and receives data through them (RFC 8656)."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal, Protocol, cast

from plugins.turn import stun
from plugins.turn.stun import Message

Transport = Literal["udp", "tcp", "tls"]

# Seconds until each next try over UDP, which loses packets (RFC 8489 section 6.2.1 waits for half a minute), and for a
# response over a stream.
TRIES = (0.5, 1.0, 1.5)
ANSWER_TIMEOUT = sum(TRIES)

UDP, TCP = 17, 6  # IANA's protocol numbers, for relayed data
PORT = 9  # of a peer: discard. A permission covers an address with any port, and nothing is sent there.
STALE_NONCE = 438
MAX_RELAYED = 16  # packets from peers that wait to be read; more than are sent here at a time


class Refused(Exception):
    """The server refused, with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


class Forged(Exception):
    """A response that is not signed with our secret."""


class Line(Protocol):
    """A connection to a server."""

    async def exchange(self, request: bytes, transaction: bytes) -> Message:
        """Send a request, and return the response. Raises TimeoutError, OSError."""

    async def receive(self) -> bytes:
        """Return the next data that a peer sends through the relay. Raises OSError."""

    def close(self) -> None: ...


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.waiting: dict[bytes, asyncio.Future[Message]] = {}
        self.relayed: asyncio.Queue[bytes] = asyncio.Queue(MAX_RELAYED)
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)  # asyncio's type does not derive from it

    def datagram_received(self, data: bytes, _: object) -> None:
        with contextlib.suppress(stun.Malformed, asyncio.QueueFull):
            message = stun.read(data)
            waiting = self.waiting.get(message.transaction)
            if message.kind == stun.DATA_INDICATION:
                self.relayed.put_nowait(message.attributes.get(stun.DATA, b""))
            elif waiting is not None and not waiting.done():
                waiting.set_result(message)

    def error_received(self, error: Exception) -> None:
        for waiting in self.waiting.values():  # ICMP: nothing listens on that port
            if not waiting.done():
                waiting.set_exception(error)

    async def exchange(self, request: bytes, transaction: bytes) -> Message:
        assert self.transport is not None
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.waiting[transaction] = answer
        try:
            for seconds in TRIES:
                self.transport.sendto(request)
                await asyncio.wait([answer], timeout=seconds)
                if answer.done():
                    return answer.result()
            raise TimeoutError
        finally:
            del self.waiting[transaction]
            answer.cancel()

    async def receive(self) -> bytes:
        return await self.relayed.get()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


class _Stream:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def exchange(self, request: bytes, transaction: bytes) -> Message:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            self._writer.write(request)
            await self._writer.drain()
            while (message := await self._message()).transaction != transaction:
                continue
            return message

    async def _message(self) -> Message:
        try:
            header = await self._reader.readexactly(stun.HEADER)
            return stun.read(header + await self._reader.readexactly(stun.length(header)))
        except (asyncio.IncompleteReadError, stun.Malformed) as error:
            raise ConnectionResetError("not a STUN message") from error

    async def receive(self) -> bytes:
        while (message := await self._message()).kind != stun.DATA_INDICATION:
            continue
        return message.attributes.get(stun.DATA, b"")

    def close(self) -> None:
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def connected(
    transport: Transport, address: str, port: int, trust: ssl.SSLContext | None = None, name: str = ""
) -> AsyncIterator[Line]:
    """Connect to a server until the block ends; over TLS with ``trust``, checking ``name``. Raises OSError,
    TimeoutError."""
    line: Line
    if transport == "udp":
        loop = asyncio.get_running_loop()
        _, line = await loop.create_datagram_endpoint(_Datagrams, remote_addr=(address, port))
    else:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            if transport == "tls":
                opening = asyncio.open_connection(address, port, ssl=trust, server_hostname=name)
            else:
                opening = asyncio.open_connection(address, port)
            line = _Stream(*await opening)
    try:
        yield line
    finally:
        line.close()


class Client:
    """One user on one connection, with at most one relay."""

    def __init__(self, line: Line, username: str, password: str) -> None:
        self._line, self._username, self._password = line, username, password
        self._realm, self._nonce = b"", b""
        self._key: bytes | None = None
        self._allocated = False

    async def allocate(self, *, version: int | None = None, protocol: int = UDP) -> Message:
        """Request a relay for peers of that IP version. Raises Refused, Forged, TimeoutError, OSError."""
        attributes = [(stun.REQUESTED_TRANSPORT, struct.pack("!B3x", protocol))]
        if version is not None:
            attributes.append((stun.REQUESTED_ADDRESS_FAMILY, struct.pack("!B3x", stun.FAMILIES[version])))
        message = await self._request(stun.ALLOCATE, lambda _: attributes)
        self._allocated = True
        return message

    async def permit(self, peer: str) -> None:
        """Request permission to exchange data with ``peer``. Raises as ``allocate``."""
        address = ipaddress.ip_address(peer)
        await self._request(
            stun.CREATE_PERMISSION,
            lambda transaction: [stun.xored(stun.XOR_PEER_ADDRESS, address, PORT, transaction)],
        )

    async def free(self) -> None:
        """Release the relay, if there is one: it would last for ten minutes. Raises as ``allocate``."""
        if self._allocated:
            await self._request(stun.REFRESH, lambda _: [(stun.LIFETIME, bytes(4))])

    async def _request(self, method: int, attributes: Callable[[bytes], Sequence[stun.Attribute]]) -> Message:
        """Send a request with the attributes that ``attributes`` returns for its transaction."""
        if self._key is None:  # the first response to a new client is the realm and a nonce (RFC 8489 section 9.2.3)
            message = await self._send_once(method, attributes)
            if message.error != 401:
                return self._check(message)
            self._take_challenge(message)
        message = await self._send_once(method, attributes)
        if message.error == STALE_NONCE:
            self._take_challenge(message)
            message = await self._send_once(method, attributes)
        return self._check(message)

    def _take_challenge(self, message: Message) -> None:
        self._realm = message.attributes.get(stun.REALM, self._realm)
        self._nonce = message.attributes.get(stun.NONCE, b"")
        self._key = stun.key(self._username, self._realm, self._password)

    async def _send_once(self, method: int, attributes: Callable[[bytes], Sequence[stun.Attribute]]) -> Message:
        transaction = stun.new_transaction()
        own: list[stun.Attribute] = []
        if self._key is not None:
            own = [(stun.USERNAME, self._username.encode()), (stun.REALM, self._realm), (stun.NONCE, self._nonce)]
        data = stun.request(method, transaction, [*attributes(transaction), *own], self._key)
        return await self._line.exchange(data, transaction)

    def _check(self, message: Message) -> Message:
        if message.error is not None:
            raise Refused(message.error)
        if self._key is None or not message.is_signed_by(self._key):
            raise Forged
        return message


async def bind(line: Line) -> Message:
    """Send a STUN binding request, to check that a STUN server answers. Raises TimeoutError, OSError."""
    transaction = stun.new_transaction()
    return await line.exchange(stun.request(stun.BINDING, transaction, []), transaction)
