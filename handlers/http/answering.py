"""How an endpoint answers: JSON, compressed if that pays, and refusals that keep the connection open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Hashable
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

from config.pages import MAX_PAGE
from handlers.http import compression
from handlers.http.answers_in_flight import Reservation
from handlers.http.http1 import linger
from handlers.http.site import Site
from handlers.wire import errors
from handlers.wire.errors import ApiError, InvalidRequest
from handlers.wire.shapes import Shape, encode

MAX_BODY = 256 * 1024  # contract section 1

_STATUS: dict[int, type[ApiError]] = {404: errors.NotFound, 405: errors.MethodNotAllowed, 413: errors.TooLarge}


class AnsweringHandler(RequestHandler):
    """The part of ApiHandler that writes answers."""

    application: Site
    request_id: str
    _refusal: ApiError | None = None  # sent when the body has been read
    _reservation: Reservation | None = None  # memory that is reserved for the answer

    @classmethod
    def allow(cls) -> str:
        """Return the value of the header Allow."""
        raise NotImplementedError

    @property
    def reader(self) -> Hashable:
        """The account, or the address, whose answers share one bound of memory."""
        raise NotImplementedError

    def _check_headers(self) -> None:
        """Check a request before its body is read. Raises ApiError."""
        raise NotImplementedError

    def reply(self, value: object, status: int = 200) -> None:
        """Answer with ``value`` (a shape, or any JSON value), compressed if it is long and the client accepts gzip.

        A thread compresses a very long answer, which is sent a moment later.
        """
        self.set_status(status)
        content = value.model_dump_json().encode() if isinstance(value, Shape) else encode(value)
        if not self._choose_gzip(content):
            self.finish(content)
        elif len(content) <= compression.MAX_BYTES_IN_LOOP:
            self.finish(compression.compress(content))
        else:
            self._auto_finish = False  # else Tornado would finish when the method returns
            self.application.run_in_background(self._finish_compressed(content))

    async def _finish_compressed(self, content: bytes) -> None:
        try:
            packed = await self.application.compressor.compress(content)
        except Exception as error:  # no caller awaits this task, so it answers the client itself
            self.log_exception(type(error), error, error.__traceback__)
            self.clear_header("Content-Encoding")
            self.send_error(500, exc_info=(type(error), error, error.__traceback__))
            return
        self.finish(packed)

    def _choose_gzip(self, content: bytes) -> bool:
        """True if JSON is compressed for this client. Sets the headers."""
        if not compression.may_compress(self.request.path):
            return False
        self.add_header("Vary", "Accept-Encoding")
        accepted = self.request.headers.get("Accept-Encoding", "")
        packed = len(content) >= compression.MIN_BYTES and compression.accepts_gzip(accepted)
        if packed:
            self.set_header("Content-Encoding", "gzip")
        return packed

    async def reserve(self, size: int = MAX_PAGE, key: Hashable = None) -> None:
        """Wait for memory for a long answer, before its data is read, and keep it until the client has received the
        answer. ``key`` owns the memory: by default the account, else the address. Raises Unavailable when this key, or
        all keys together, have too many answers in flight."""
        stream = self.request.connection.stream  # type: ignore[union-attr]
        self._reservation = await self.application.answers.reserve(key or self.reader, size, stream)

    def finish(self, chunk: Any = None) -> asyncio.Future[None]:
        reservation, self._reservation = self._reservation, None
        if reservation is None:
            return super().finish(chunk)
        try:
            written = super().finish(chunk)
        except BaseException:
            reservation.release()
            raise
        reservation.keep_until_written(len(chunk) if isinstance(chunk, bytes) else 0, written)
        return written

    def reply_nothing(self) -> None:
        self.set_status(204)
        self.clear_header("Content-Type")
        self.finish()

    def prepare(self) -> Any:
        """Check a request by its headers. A refusal is sent when the body has been read; if the body is too large, it
        is sent at once and the connection is closed."""
        try:
            self._check_headers()
        except ApiError as refusal:
            if self.is_short:
                raise
            return self.refuse(refusal)
        return None

    @property
    def is_short(self) -> bool:
        """True if the headers declare a body that is small enough to be read before a refusal is sent."""
        return self.declared_length <= MAX_BODY

    @property
    def declared_length(self) -> int:
        """The length of the body that the headers declare; 0 if they don't."""
        length = self.request.headers.get("Content-Length", "0")
        # Only the first digits: int() rejects thousands of them.
        return min(int(length.lstrip("0")[:16] or 0), 10**15) if length.isdecimal() else 0

    async def refuse(self, refusal: ApiError) -> None:
        """Answer before the body has been read, and close the connection."""
        self._answer(refusal)
        self.set_header("Connection", "close")
        self.set_header("Content-Length", str(sum(map(len, self._write_buffer))))
        with contextlib.suppress(StreamClosedError):  # the client has disconnected
            await self.flush()
            await linger(self.request.connection.stream)  # type: ignore[union-attr]
        self.finish()

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Answer with an error after the whole request has been read: Tornado closes a connection with unread data,
        and the client, which may be sending its next request, would receive nothing."""
        unread: asyncio.Future[None] = self.request._body_future
        if self._headers_written or unread.done():
            super().send_error(status_code, **kwargs)
            return
        self._refusal = self._refusal_of(**kwargs)
        unread.add_done_callback(self._send_refusal)

    def _send_refusal(self, read: asyncio.Future[None]) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is not None and not read.cancelled() and read.exception() is None:
            super().send_error(refusal.status, exc_info=(None, refusal, None))

    async def _refuse_unread(self) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            await self.refuse(refusal)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self._answer(self._refusal_of(**kwargs))
        self.finish()

    def _refusal_of(self, exc_info: tuple[Any, BaseException | None, Any] = (None, None, None), **_: Any) -> ApiError:
        """Return the refusal that the client receives for an error."""
        error = exc_info[1]
        if isinstance(error, HTTPError):
            other = InvalidRequest if error.status_code < 500 else errors.InternalError
            return _STATUS.get(error.status_code, other)()
        refusal = errors.refusal(error, self.application.outages) if error is not None else None
        return refusal or errors.InternalError()

    def _answer(self, refusal: ApiError) -> None:
        self.set_status(refusal.status)
        for name, value in refusal.headers.items():
            self.set_header(name, value)
        if refusal.status == 405:
            self.set_header("Allow", self.allow())
        content = encode({**refusal.body(), "request_id": self.request_id})
        self.write(compression.compress(content) if self._choose_gzip(content) else content)
