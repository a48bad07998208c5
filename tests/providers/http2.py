"""An HTTP/2 server over TLS, for tests: each request is answered by a function, well or in any way that breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from h2.exceptions import ProtocolError

FRAME = 16_384  # bytes, the most that a peer takes unless it says otherwise


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    at: float = field(default_factory=time.monotonic)


@dataclass
class Reply:
    """An answer; ``broken`` says how there is none: ``reset``, ``goaway``, ``drop``, ``garbage``, or ``silence``."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    broken: str = ""
    after: float = 0.0

    @property
    def raw(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


Answer = Callable[[Request], Awaitable[Reply]]


class _Connection:
    def __init__(self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._answer, self._reader, self._writer = answer, reader, writer
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._requests: dict[int, Request] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        self._h2.initiate_connection()
        self._flush()
        try:
            while data := await self._reader.read(65536):
                for event in self._h2.receive_data(data):
                    self._take(event)
                self._flush()
        except (OSError, ProtocolError, ssl.SSLError):
            self._writer.close()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._writer.close()

    def _take(self, event: Any) -> None:
        if isinstance(event, RequestReceived):
            headers = dict(event.headers)
            self._requests[event.stream_id] = Request(headers[":method"], headers[":path"], headers)
        elif isinstance(event, DataReceived):
            self._requests[event.stream_id].body += event.data
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            task = asyncio.create_task(self._reply(event.stream_id, self._requests.pop(event.stream_id)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _reply(self, stream: int, request: Request) -> None:
        reply = await self._answer(request)
        if reply.after:
            await asyncio.sleep(reply.after)
        if reply.broken == "silence":
            return
        with contextlib.suppress(ProtocolError):
            if reply.broken == "drop":
                self._writer.transport.abort()
            elif reply.broken == "garbage":
                self._writer.write(b"\xff" * 100)
            elif reply.broken == "reset":
                self._h2.reset_stream(stream)
            elif reply.broken == "goaway":
                self._h2.close_connection()
            else:
                headers = [(":status", str(reply.status)), *reply.headers.items()]
                self._h2.send_headers(stream, headers, end_stream=not reply.raw)
                parts = [reply.raw[start : start + FRAME] for start in range(0, len(reply.raw), FRAME)]
                for number, part in enumerate(parts, 1):
                    self._h2.send_data(stream, part, end_stream=number == len(parts))
            self._flush()
        if reply.broken == "goaway":
            self._writer.close()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self._writer.is_closing():
            self._writer.write(data)


class Doors:
    """Where a server listens, and how many connections came."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def listening(answer: Answer, context: ssl.SSLContext, port: int = 0) -> AsyncIterator[Doors]:
    """Answer requests until the block ends."""
    tasks: set[asyncio.Task[None]] = set()
    doors = Doors(port)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        doors.connections += 1
        try:
            await _Connection(answer, reader, writer).serve()
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    doors.port = server.sockets[0].getsockname()[1]
    try:
        yield doors
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
