"""Judges a WebSocket server by the cases of the Autobahn suite: ours, or one of stock Tornado that echoes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler

from handlers.sockets.rfc6455 import BINARY, CLOSE, PONG, TEXT
from handlers.sockets.socket import MAX_FRAME
from tests.handlers.autobahn import NORMAL, Case, close
from tests.handlers.websocket import handshake, received

Messages = list[str | bytes]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], AbstractAsyncContextManager[Connection]]


async def failures(cases: Iterable[Case], connect: Connect, got: Messages, *, may_drop: bool = False) -> dict[str, str]:
    """Return what is wrong with the server's side of each case that fails. ``got`` has the messages that its server
    receives. A server that ``may_drop`` need not send a Close frame to a client that breaks the protocol: so the suite
    itself judges, while RFC 6455 (section 7.1.7) says that it should."""
    found = {}
    for case in cases:
        got.clear()
        async with connect() as (reader, writer):
            try:
                wrong = await _fault(case, reader, writer, got)
            except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
                broken = case.codes and NORMAL not in case.codes
                wrong = f"ended with {type(error).__name__}"
                if may_drop and broken and not isinstance(error, TimeoutError):
                    wrong = "" if got == list(case.messages) else _received(got)
        if wrong:
            found[case.name] = wrong
    return found


async def _fault(case: Case, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, got: Messages) -> str:
    with contextlib.suppress(ConnectionError):  # it may end before it has all of what it refuses
        for piece in case.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
    answers, pongs = 0, []
    closing = not case.codes
    while True:
        if closing and answers == len(case.messages) and len(pongs) == len(case.pongs):
            closing = False
            writer.write(close(NORMAL))
        opcode, payload = await received(reader)
        if opcode == CLOSE:
            break
        if opcode in (TEXT, BINARY):
            answers += 1
        elif opcode == PONG:
            pongs.append(payload)
    code = int.from_bytes(payload[:2])
    if got != list(case.messages):
        return _received(got)
    if pongs != list(case.pongs):
        return f"answered with the pongs {pongs}"
    if code not in (case.codes or [NORMAL]):
        return f"closed with {code}"
    if await reader.read():
        return "sent something after its Close frame"
    return ""


def _received(got: Messages) -> str:
    return f"received {[(type(message).__name__, len(message)) for message in got]}"


@contextlib.asynccontextmanager
async def stock(got: Messages) -> AsyncIterator[Connect]:
    """A server of Tornado as it comes, which echoes. It accepts messages as large as ours does."""

    class Echo(WebSocketHandler):
        async def on_message(self, message: str | bytes) -> None:
            got.append(message)
            await self.write_message(message, binary=isinstance(message, bytes))

    [socket] = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(Application([("/ws", Echo)], websocket_max_message_size=MAX_FRAME))
    server.add_socket(socket)

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Connection]:
        async with handshake(socket.getsockname()[1]) as (reader, writer, _):
            yield reader, writer

    try:
        yield connect
    finally:
        server.stop()
        await server.close_all_connections()
