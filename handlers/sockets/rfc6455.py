"""RFC 6455 on the server's side: a parser of bytes, and the Tornado protocol that reads them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Awaitable, Iterator
from typing import Any, Final
from typing import Protocol as Interface

from tornado.iostream import StreamClosedError
from tornado.util import _websocket_mask as mask
from tornado.websocket import WebSocketHandler, WebSocketProtocol13

from handlers.limits.share import Share

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
PROTOCOL_ERROR, NOT_UTF8, TOO_BIG = 1002, 1007, 1009
_CODES = {*range(1000, 1015)} - {1004, 1005, 1006}  # what an endpoint may send (RFC 6455 section 7.4, IANA's registry)

READ: Final = 64 * 1024  # bytes per read; a burst of small frames costs one read
# One socket yields to the others after 16 small frames, or one large frame, so that a flood does not slow others.
FRAME_COST: Final = 4 * 1024
TURN: Final = 64 * 1024
LARGE: Final = 16 * 1024  # bytes; an account may have one message of this size at work, on all its sockets
# Read and dropped after a violation, so that a reset does not destroy the Close frame.
LINGER_SECONDS, LINGER_BYTES = 2.0, 1 << 20


class Violation(Exception):
    """The client broke the protocol; the connection is closed with ``code`` (RFC 6455 section 7.1.7)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Parser:
    """Parses the frames of a client from a stream of bytes. Messages may have at most ``limit`` bytes."""

    __slots__ = ("_limit", "_message", "_need", "_opcode", "_rest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest: bytearray | None = None  # the beginning of an incomplete frame
        self._need = 0  # bytes that it needs before it is worth parsing again
        self._message: bytearray | None = None  # the fragments so far
        self._opcode = CONTINUATION

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield each frame that is complete now: a whole message as (TEXT or BINARY, payload), a control frame, or
        (CONTINUATION, b"") for a fragment that doesn't end its message. Raises Violation.
        """
        if self._rest is not None:
            # Parsing a large frame again for each byte would cost the square of its size.
            self._rest += data
            if len(self._rest) < self._need:
                return
            data, self._rest = bytes(self._rest), None
        at, size = 0, len(data)
        while True:
            need = 2
            if size - at < need:
                break
            first, second = data[at], data[at + 1]
            length = second & 0x7F
            start = at + 6
            if length > 125:
                start += 2 if length == 126 else 8
                need = start - at
                if size < start:
                    break
                length = int.from_bytes(data[at + 2 : start - 4])
            self._check_head(first, second, length)
            end = start + length
            need = end - at
            if size < end:
                break
            payload = mask(data[start - 4 : start], data[start:end])
            at = end
            yield self._complete(first, payload)
        if at < size:
            self._rest, self._need = bytearray(data[at:]), need

    def _check_head(self, first: int, second: int, length: int) -> None:
        """Check the head of a frame before its payload arrives. Raises Violation."""
        opcode = first & 0x0F
        if first & 0x70:
            raise Violation(PROTOCOL_ERROR, "reserved bits")
        if not second & 0x80:
            raise Violation(PROTOCOL_ERROR, "not masked")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise Violation(PROTOCOL_ERROR, "unknown opcode")
            if not first & 0x80 or length > 125:
                raise Violation(PROTOCOL_ERROR, "control frame fragmented or too long")
            return
        if opcode > BINARY:
            raise Violation(PROTOCOL_ERROR, "unknown opcode")
        if (opcode == CONTINUATION) != (self._message is not None):
            raise Violation(PROTOCOL_ERROR, "fragments out of order")
        if length + len(self._message or b"") > self._limit:
            raise Violation(TOO_BIG, "message too big")

    def _complete(self, first: int, payload: bytes) -> tuple[int, bytes]:
        opcode = first & 0x0F
        if opcode >= CLOSE:
            return opcode, payload
        if first & 0x80:
            if self._message is None:
                return opcode, payload
            self._message += payload
            payload, self._message = bytes(self._message), None
            return self._opcode, payload
        if self._message is None:
            self._opcode, self._message = opcode, bytearray(payload)
        else:
            self._message += payload
        return CONTINUATION, b""


class Receiver(Interface):
    """Receives the messages of a connection."""

    @property
    def share(self) -> Share | None:
        """The account's share of the loop; None if nothing is counted."""

    def admit_frame(self) -> bool:
        """Count a frame. Returns False if it should be dropped. Raises Violation if frames come too fast."""

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """Handle a message. Returns None if that is done, else what to await before the next one is read."""

    def on_large_message(self, message: str | bytes, share: Share) -> Awaitable[None]:
        """Handle a large message in its account's turn."""

    def on_pong(self, data: bytes) -> None: ...

    def fail(self, violation: Violation) -> None:
        """Close the connection: the client broke the protocol or a limit."""


class Protocol(WebSocketProtocol13):
    """Tornado's protocol with our own reader. Tornado's reader awaits each part of each frame, accepts unmasked frames,
    and drops the connection where the RFC requires a Close frame with a code."""

    def __init__(self, handler: WebSocketHandler, receiver: Receiver, params: Any) -> None:
        super().__init__(handler, False, params)
        self._receiver = receiver

    async def _receive_frame_loop(self) -> None:
        try:
            await self._read()
        except Violation as violation:
            await self._fail(violation)
        except StreamClosedError:
            self._abort()
        except Exception:
            self.handler.log_exception(*sys.exc_info())
            self._abort()
        finally:
            self.handler.on_ws_connection_close(self.close_code, self.close_reason)

    async def _read(self) -> None:
        parser, share = Parser(self.params.max_message_size), self._receiver.share
        work = 0
        while True:
            data = await self.stream.read_bytes(READ, partial=True)
            if share is not None and not share.is_free:
                await share.wait_turn()
            work += FRAME_COST
            for opcode, payload in parser.feed(data):
                pending = self._take(opcode, payload)
                if pending is not None:
                    await pending
                if self.client_terminated:
                    return
                work += FRAME_COST + len(payload)
                if work >= TURN:
                    await (asyncio.sleep(0) if share is None else share.yield_to_others(work))
                    work = 0

    def _take(self, opcode: int, payload: bytes) -> Awaitable[None] | None:
        """Handle one frame. Returns None if that is done, else what to await."""
        if opcode == CLOSE:
            self._closed(payload)
        elif not self._receiver.admit_frame():
            return None
        elif opcode == TEXT:
            try:
                text = payload.decode()
            except UnicodeDecodeError:
                raise Violation(NOT_UTF8, "not UTF-8") from None
            share = self._receiver.share if len(payload) >= LARGE else None
            return self._receiver.on_message(text) if share is None else self._receiver.on_large_message(text, share)
        elif opcode == BINARY:
            return self._receiver.on_message(payload)
        elif opcode == PING:
            self._send_pong(payload)
        elif opcode == PONG:
            self._receiver.on_pong(payload)
        return None

    def _closed(self, payload: bytes) -> None:
        """Handle the client's Close frame: store the reason, and answer it (RFC 6455 sections 5.5.1 and 7.4)."""
        if payload:
            code = int.from_bytes(payload[:2])
            if len(payload) == 1 or not (code in _CODES or 3000 <= code < 5000):
                raise Violation(PROTOCOL_ERROR, "invalid close code")
            try:
                self.close_code, self.close_reason = code, payload[2:].decode()
            except UnicodeDecodeError:
                raise Violation(NOT_UTF8, "not UTF-8") from None
        self.client_terminated = True
        self.close(self.close_code)

    async def _fail(self, violation: Violation) -> None:
        self._receiver.fail(violation)
        left = LINGER_BYTES
        with contextlib.suppress(StreamClosedError, TimeoutError, OSError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self.stream.writing():  # the Close frame is behind data that a slow client has not read
                    await asyncio.sleep(0.05)
                if not self.stream.closed():
                    self.stream.socket.shutdown(socket.SHUT_WR)
                while left > 0:
                    left -= len(await self.stream.read_bytes(READ, partial=True))
        self._abort()
