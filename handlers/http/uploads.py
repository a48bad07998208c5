"""Uploads: endpoints that stream a body to a Sink, with bounded memory and no time limit while bytes arrive."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from tornado.web import stream_request_body

from handlers.http import listener
from handlers.http.base import MAX_BODY, ApiHandler
from handlers.wire import errors

BLOCK = 256 * 1024  # bytes written at once: a hop into a thread and back costs as much as copying 100 KiB
MAX_PIECES = 512  # pieces written at once, so that single bytes fill neither memory nor the vectors of a system call


class Sink(Protocol):
    """Receives a body. ``room`` is the largest number of bytes that it accepts."""

    room: int

    async def write(self, blocks: list[bytes]) -> None:
        """Write the next bytes. After an ApiError it is not called again."""

    async def abandon(self, blocks: list[bytes]) -> None:
        """Write these last bytes: the connection broke, or the body was refused."""


@stream_request_body
class UploadHandler(ApiHandler):
    """An endpoint that streams its body to the Sink that ``begin`` returns, a block at a time. TCP slows the client
    down to the Sink's speed. A client that sends nothing for STALL_SECONDS is disconnected; there is no other time
    limit. The method of the request runs when the body is complete."""

    max_body = 1 << 50  # until begin() returns a Sink with its limit
    slow = float("inf")  # its time depends on the client

    _sink: Sink | None = None
    _held = 0
    _busy = False
    _broken = False
    _last_activity = 0.0
    _paced = False
    _watch: asyncio.TimerHandle | None = None

    async def begin(self, *path: Any, **_: Any) -> Sink | None:
        """Check the request by its headers. Returns None if the body is JSON, as elsewhere."""
        raise NotImplementedError

    @property
    def is_short(self) -> bool:
        # A chunked body has no declared length, and is usually long.
        return super().is_short and "Transfer-Encoding" not in self.request.headers

    def prepare(self) -> Any:
        return self._prepare()

    async def _prepare(self) -> None:
        try:
            refused = super().prepare()
            if refused is not None:
                await refused
            if self._finished or self.request.method == "OPTIONS":
                return
            self._sink = await self.begin(*self.path_args)
        except Exception as error:
            refusal = errors.refusal(error, self.application.outages)
            if refusal is None or self.is_short:
                raise
            self.log_exception(type(error), error, error.__traceback__)
            await self.refuse(refusal)
            return
        self.max_body = MAX_BODY if self._sink is None else self._sink.room
        if self._broken:
            await self._abandon()
        elif self.declared_length > self.max_body:
            await self._abandon()
            if self.is_short:
                raise self._too_large()
            await self.refuse(self._too_large())
        elif self._sink is not None:
            self.request.connection.set_body_timeout(None)  # type: ignore[union-attr]  # we watch it ourselves
            self._start_watch()
            self.application.pace.begin()
            self._paced = True

    def data_received(self, chunk: bytes) -> Any:
        if self._sink is None:
            return super().data_received(chunk)
        self._received += len(chunk)
        if self._received > self.max_body:
            return self._abort(self._too_large())
        self._last_activity = asyncio.get_running_loop().time()
        self._chunks.append(chunk)
        self._held += len(chunk)
        return self._write_block() if self._held >= BLOCK or len(self._chunks) >= MAX_PIECES else None

    async def write_rest(self) -> None:
        """Write the last bytes. Each method of an upload calls it first. Raises what the Sink raises."""
        self._stop_watch()
        if self._sink is not None and self._chunks:
            try:
                await self._write(self._sink)
            except BaseException:
                await self._abandon()
                raise

    async def _write_block(self) -> None:
        self._busy = True
        try:
            await self.application.pace.take(self._held)
            if self._sink is not None:
                await self._write(self._sink)
        except Exception as error:
            self.log_exception(type(error), error, error.__traceback__)
            await self._abort(errors.refusal(error, self.application.outages) or errors.InternalError())
        finally:
            self._busy = False
            self._last_activity = asyncio.get_running_loop().time()

    async def _write(self, sink: Sink) -> None:
        self.application.metrics.uploaded += self._held
        blocks, self._chunks, self._held = self._chunks, [], 0
        await sink.write(blocks)

    async def _abort(self, refusal: errors.ApiError) -> None:
        self._chunks.clear()
        self._stop_watch()
        if not self._finished:
            try:
                await self._abandon()
            except Exception as error:  # the client still receives the answer
                self.log_exception(type(error), error, error.__traceback__)
            await self.refuse(refusal)

    async def _abandon(self) -> None:
        sink, self._sink = self._sink, None
        blocks, self._chunks = self._chunks, []
        if sink is not None:
            await sink.abandon(blocks)

    # A client that stalls ------------------------------------------------------------------------------------------

    def _start_watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._last_activity = loop.time()
        self._watch = loop.call_later(listener.STALL_SECONDS, self._check_stall)

    def _check_stall(self) -> None:
        loop = asyncio.get_running_loop()
        due = (loop.time() if self._busy else self._last_activity) + listener.STALL_SECONDS
        if due <= loop.time():
            self.request.connection.stream.close()  # type: ignore[union-attr]
        else:
            self._watch = loop.call_at(due, self._check_stall)

    def _stop_watch(self) -> None:
        if self._paced:
            self.application.pace.end()
            self._paced = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._stop_watch()
        self._broken = True
        if self._sink is not None:
            # Bytes that have arrived are kept if the Sink can keep them; a server that stops waits for it.
            self.application.run_in_background(self._abandon())
