"""WebSocket as bytes (RFC 6455): frames as a client makes them, and what comes back on the same connection."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import struct
from collections.abc import AsyncIterator

from handlers.sockets.rfc6455 import TEXT
from server import Server
from tests.client import Account
from tests.running import Services, place, serving
from tests.waiting import WAIT


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """A client's frame (RFC 6455 section 5.2)."""
    size = len(payload)
    head = bytes((0x80 * fin | reserved | opcode,))
    bit = 0x80 * masked
    if size < 126:
        head += bytes((bit | size,))
    elif size < 65536:
        head += struct.pack("!BH", bit | 126, size)
    else:
        head += struct.pack("!BQ", bit | 127, size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    stream = (mask * (size // 4 + 1))[:size]
    return head + mask + (int.from_bytes(payload) ^ int.from_bytes(stream)).to_bytes(size)


async def received(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The next frame of the server. Raises IncompleteReadError at the end."""
    async with asyncio.timeout(WAIT):
        first, size = await reader.readexactly(2)
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2))
        elif size == 127:
            size = int.from_bytes(await reader.readexactly(8))
        assert first & 0xF0 == 0x80
        return first & 0x0F, await reader.readexactly(size)


@contextlib.asynccontextmanager
async def handshake(
    port: int, *headers: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]]:
    """An open connection, and the head of the answer to its handshake."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    key = base64.b64encode(os.urandom(16)).decode()
    head = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    head += f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    head += "".join(f"{header}\r\n" for header in headers)
    writer.write(f"{head}\r\n".encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101")
    try:
        yield reader, writer, answer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def upgraded(
    server: Server, account: Account, *headers: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]]:
    """A connection whose ``ready`` has come, and the head of the answer to its handshake."""
    async with handshake(server.port, f"Authorization: Bearer {account.token}", *headers) as (reader, writer, answer):
        opcode, payload = await received(reader)
        assert (opcode, json.loads(payload)["type"]) == (TEXT, "ready")
        yield reader, writer, answer


@contextlib.asynccontextmanager
async def line(services: Services, **settings: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """An upgraded connection to a new server."""
    async with place(services) as shared, serving(shared, **settings) as server:
        alice = await Account().register(server.url)
        async with upgraded(server, alice) as (reader, writer, _):
            yield reader, writer
