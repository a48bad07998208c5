"""The base of every HTTP endpoint: tokens, sizes, strict JSON, errors and headers, the same for all."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlencode

import structlog
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler, stream_request_body

from config.logs import known
from config.settings import Rate
from config.traces import Ended
from handlers import compression, errors
from handlers.errors import ApiError, Fault, InvalidRequest
from handlers.http1 import linger
from handlers.limits import client_address, limit_key, within
from handlers.operations import Header
from handlers.origins import is_allowed
from handlers.shapes import Shape, decode, encode
from handlers.site import Site, version
from handlers.tokens import Session

log = structlog.get_logger(__name__)
S = TypeVar("S", bound=Shape)

MAX_BODY = 256 * 1024  # contract section 1
SLOW = 1.0  # seconds; a request that takes longer is worth a line in the log

# A UUID in the pattern of a route: what does not look like one is no address of ours.
ID = "([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# What any request may bear. None of them is ever needed.
HEADERS = (
    Header("X-PrID", "One's own public id. When it is not the token's, 403 `prid_mismatch`."),
    Header("X-Client-Version", "Of the app. Older than the server's `MIN_CLIENT_VERSION`: 426."),
    Header("X-Platform", "`android`, `ios`, …; kept with the session, counted in the metrics."),
    Header("X-Request-ID", "At most 64 of `A-Za-z0-9._-` are taken over; anything else is replaced."),
)
_CORS_HEADERS = ("Authorization", "Content-Type", *(header.name for header in HEADERS))
_CORS_EXPOSED = ("Link", "Retry-After", "X-Request-ID")
_TRACE_HEADERS = ("traceparent", "tracestate")  # W3C Trace Context
_STATUS: dict[int, type[ApiError]] = {404: errors.NotFound, 405: errors.MethodNotAllowed, 413: errors.TooLarge}
_PLATFORMS = ("android", "ios", "web", "desktop", "none")
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD")


@dataclass(frozen=True, slots=True)
class Client:
    """What a request says of the app that sent it; stored with its session."""

    platform: str | None
    version: str | None
    address: str = field(repr=False)


@stream_request_body
class ApiHandler(RequestHandler):
    """An endpoint. It wants a valid token unless its class says ``public = True``."""

    public = False
    # False where GET uses something up, or does more than answer: HEAD, which is GET without the body, is 405 there.
    head_allowed = True
    max_body = MAX_BODY
    slow = SLOW
    # What every method of the endpoint may be refused with, for any reason that the house knows.
    refuses: tuple[type[ApiError], ...] = (
        errors.InvalidRequest,
        errors.Unauthorized,
        errors.TokenExpired,
        errors.PridMismatch,
        errors.TooLarge,
        errors.ClientOutdated,
        errors.InternalError,
        errors.Unavailable,
    )
    # Headers that scripts of a listed origin may send and read here, beside those of every endpoint.
    cors_takes: tuple[str, ...] = ()
    cors_shows: tuple[str, ...] = ()
    application: Site
    _session: Session | None

    def __init__(self, application: Site, request: Any, **kwargs: Any) -> None:
        # Before super(): set_default_headers, which it calls, wants the id.
        given = request.headers.get("X-Request-ID", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        self._started = time.perf_counter()
        self._session = None
        self._chunks: list[bytes] = []
        self._received = 0
        application.active += 1
        self._active = True
        self._answered: Ended | None = None
        self._refusal: ApiError | None = None  # to be sent when the body has been read
        self._failed: Exception | None = None
        try:
            super().__init__(application, request, **kwargs)
        except Exception as error:  # of initialize, the last that it calls; Tornado would drop the connection
            self._failed = error

    # What endpoints use -----------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """Who is asking. Raises Unauthorized where nobody is known."""
        if self._session is None:
            raise errors.Unauthorized
        return self._session

    @property
    def client(self) -> Client:
        headers = self.request.headers
        platform, app = headers.get("X-Platform", "").strip().lower(), headers.get("X-Client-Version", "").strip()
        return Client(_printable(platform, 16), _printable(app, 32), self.address)

    @property
    def address(self) -> str:
        """The client's address; X-Forwarded-For counts only from a trusted proxy."""
        forwarded = ", ".join(self.request.headers.get_list("X-Forwarded-For")) or None
        return client_address(self.request.remote_ip or "", forwarded, self.application.core.trusted_proxies)

    @property
    def origin(self) -> str:
        """Scheme and host by which the client found us; X-Forwarded-Proto counts only from a trusted proxy."""
        request, scheme = self.request, self.request.protocol
        given = request.headers.get("X-Forwarded-Proto", "").strip().lower()
        if given in ("http", "https") and within(request.remote_ip or "", self.application.core.trusted_proxies):
            scheme = given
        return f"{scheme}://{request.host}"

    @property
    def has_body(self) -> bool:
        return self._received > 0

    @property
    def raw_body(self) -> bytes:
        """The body as it came, for what is signed byte by byte."""
        return b"".join(self._chunks)

    def body(self, shape: type[S]) -> S:
        """The request's JSON body as ``shape``. Raises InvalidRequest or ValidationError with all its faults."""
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise errors.UnsupportedMediaType
        return shape.model_validate(decode(self.raw_body))

    def query(self, shape: type[S]) -> S:
        """The query string as ``shape``; of a repeated parameter the last one counts."""
        given = {}
        for name, values in self.request.query_arguments.items():
            try:
                given[name] = values[-1].decode("utf-8")
            except UnicodeDecodeError:
                raise InvalidRequest("Some fields are not valid.", details=[Fault(name, "not UTF-8")]) from None
        return shape.model_validate(given, strict=False)

    async def limit(self, name: str, rate: Rate, key: str | None = None) -> None:
        """Count this request; by client address unless another key is given. Raises RateLimited."""
        await self.application.limits.spend(name, key or limit_key(self.address), rate)

    def count_client(self) -> None:
        """Count a request that signs an app in or keeps it signed in, by platform."""
        platform = self.client.platform or "none"
        self.application.metrics.clients.labels(platform if platform in _PLATFORMS else "other").inc()

    def reply(self, value: object, status: int = 200) -> None:
        """Answer with ``value`` (a shape, or what JSON can hold), compressed if it is long and the client accepts that.

        A very long answer is sent a moment later, when a thread has compressed it.
        """
        self.set_status(status)
        content = value.model_dump_json().encode() if isinstance(value, Shape) else encode(value)
        if not self._is_packed(content):
            self.finish(content)
        elif len(content) <= compression.IN_LOOP:
            self.finish(compression.pack(content))
        else:
            self._auto_finish = False  # Tornado would finish when the method returns
            self.application.keep(self._finish_packed(content))

    async def _finish_packed(self, content: bytes) -> None:
        self.finish(await self.application.compressor.pack(content))

    def _is_packed(self, content: bytes) -> bool:
        """Whether JSON is to be compressed for this client; the headers say so."""
        if not compression.may_be_packed(self.request.path):
            return False
        self.add_header("Vary", "Accept-Encoding")
        accepted = self.request.headers.get("Accept-Encoding", "")
        packed = len(content) >= compression.SMALLEST and compression.takes_gzip(accepted)
        if packed:
            self.set_header("Content-Encoding", "gzip")
        return packed

    def reply_nothing(self) -> None:
        self.set_status(204)
        self.clear_header("Content-Type")
        self.finish()

    def link_next(self, **parameters: object) -> None:
        """Point to the next page of a list (RFC 8288)."""
        self.set_header("Link", f'<{self.request.path}?{urlencode(parameters)}>; rel="next"')

    # What the house does for all of them --------------------------------------------------------------------------

    def set_default_headers(self) -> None:
        headers = self._headers
        headers["Server"] = "Mimu"
        headers["Content-Type"] = "application/json"
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Cache-Control"] = "no-store"
        headers["X-Request-ID"] = self.request_id
        allowed = self.application.core.cors_allow_origins
        if allowed:
            origin = self.request.headers.get("Origin")
            headers["Vary"] = "Origin"
            if origin and is_allowed(origin, allowed):
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = ", ".join((*_CORS_EXPOSED, *self.cors_shows))

    def _too_large(self) -> ApiError:
        return errors.TooLarge(f"The body is larger than {self.max_body} bytes.")

    async def refuse(self, refusal: ApiError) -> None:
        """Answer before the body has been read, and close the connection."""
        self._answer(refusal)
        self.set_header("Connection", "close")
        self.set_header("Content-Length", str(sum(map(len, self._write_buffer))))
        with contextlib.suppress(StreamClosedError):  # the client has gone
            await self.flush()
            await linger(self.request.connection.stream)  # type: ignore[union-attr]
        self.finish()

    @property
    def ends_soon(self) -> bool:
        """True if the headers announce a body that is small enough to be read before a refusal is sent."""
        return self.declared <= MAX_BODY

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Answer with an error, when the request has been read: Tornado closes a connection whose request it has not
        read to its end, without a word to the client, who may be sending the next one."""
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

    def prepare(self) -> Any:
        """Judge a request by its headers: what it raises is sent when the body has been read, or, where that is too
        large, before, at the end of the connection."""
        try:
            self._judge_headers()
        except ApiError as refusal:
            if self.ends_soon:
                raise
            return self.refuse(refusal)
        return None

    def _judge_headers(self) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=self.request_id)
        if self._failed is not None:
            raise self._failed
        self._begin_trace()
        headers = self.request.headers
        if self.request.method == "OPTIONS":
            return
        if self.application.minimum_version and "X-Client-Version" in headers:
            client = version(headers["X-Client-Version"])
            if client and client < self.application.minimum_version:
                raise errors.ClientOutdated
        authorization = headers.get("Authorization")
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() != "bearer":
                raise errors.Unauthorized
            self._session = self.application.tokens.verify(token.strip())
            claimed = headers.get("X-PrID")
            if claimed is not None and claimed.lower() != self._session.public_id.lower():
                raise errors.PridMismatch
        elif not self.public:
            raise errors.Unauthorized
        if self.request.method not in self.allow().split(", "):
            raise errors.MethodNotAllowed  # before an upload begins, which looks at no method
        # The connection's own limit is lifted because it doesn't know how much each endpoint takes.
        if self.declared > self.max_body:
            raise self._too_large()

    def _begin_trace(self) -> None:
        """A trace of someone else's is taken on only from a proxy that is trusted: it says what is to be recorded."""
        traces, request = self.application.traces, self.request
        if traces.on:
            trusted = within(request.remote_ip or "", self.application.core.trusted_proxies)
            carrier = {name: request.headers[name] for name in _TRACE_HEADERS if trusted and name in request.headers}
            self._answered = traces.request(
                request.method or "", self.application.route(self), self.request_id, carrier
            )

    @property
    def declared(self) -> int:
        """The length of the body that the headers announce; 0 when they don't."""
        length = self.request.headers.get("Content-Length", "0")
        # Few digits first: int() refuses what has thousands.
        return min(int(length.lstrip("0")[:16] or 0), 10**15) if length.isdecimal() else 0

    def data_received(self, chunk: bytes) -> Any:
        self._received += len(chunk)
        if self._refusal is not None:  # the body of what is refused already: dropped, and not read without end
            return None if self.ends_soon and self._received <= MAX_BODY else self._refuse_unread()
        if self._received > self.max_body:
            self._chunks.clear()
            return None if self._finished else self.refuse(self._too_large())
        self._chunks.append(chunk)
        return None

    def options(self, *_: Any) -> None:
        """Preflight (CORS), and the methods of this address for whoever asks."""
        self.set_header("Allow", self.allow())
        if "Access-Control-Allow-Origin" in self._headers:
            self.set_header("Access-Control-Allow-Methods", self.allow())
            self.set_header("Access-Control-Allow-Headers", ", ".join((*_CORS_HEADERS, *self.cors_takes)))
            self.set_header("Access-Control-Max-Age", "86400")
        self.reply_nothing()

    def head(self, *path: Any, **named: Any) -> Any:
        """Answer as GET does, without the body. It counts against the same limits: the length of an answer says much
        of what is in it."""
        return self.get(*path, **named)

    @classmethod
    @cache
    def methods(cls) -> tuple[str, ...]:
        """The methods that the endpoint has code for, which is what documents list."""
        given = {"HEAD": ApiHandler.head}
        return tuple(
            method
            for method in _METHODS
            if getattr(cls, method.lower()) is not given.get(method, getattr(RequestHandler, method.lower()))
        )

    @classmethod
    @cache
    def allow(cls) -> str:
        """The methods that the endpoint takes, as the header Allow says them."""
        own = cls.methods()
        head = ["HEAD"] if "GET" in own and "HEAD" not in own and cls.head_allowed else []
        return ", ".join([*own, *head, "OPTIONS"])

    def compute_etag(self) -> str | None:
        return None  # answers are per user and moment; hashing each would cost more than it saves

    def check_etag_header(self) -> bool:
        return False

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self._answer(self._refusal_of(**kwargs))
        self.finish()

    def _refusal_of(self, exc_info: tuple[Any, BaseException | None, Any] = (None, None, None), **_: Any) -> ApiError:
        """What an error means to the client."""
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
        self.write(compression.pack(content) if self._is_packed(content) else content)

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if value is None or isinstance(value, HTTPError):
            return
        refusal = errors.refusal(value, self.application.outages)
        if refusal is None:
            log.error("request_failed", handler=type(self).__qualname__, exc_info=value)
        elif refusal.status in (500, 503):
            handler, cause = type(self).__qualname__, type(value).__name__
            log.warning("request_unavailable", handler=handler, cause=cause, **known(value))

    def _not_active(self, status: int) -> None:
        if self._active:
            self._active = False
            self.application.active -= 1
        if self._answered is not None:
            self._answered(status)
            self._answered = None

    def on_connection_close(self) -> None:
        self._not_active(0)
        super().on_connection_close()

    def on_finish(self) -> None:
        self._not_active(self._status_code)
        seconds = time.perf_counter() - self._started
        self.application.metrics.observe(type(self).__qualname__, self.request.method or "", self._status_code, seconds)
        if seconds > self.slow:
            log.warning(
                "request_slow",
                handler=type(self).__qualname__,
                status=self._status_code,
                milliseconds=round(seconds * 1e3),
            )


def _printable(text: str, longest: int) -> str | None:
    return text[:longest] if text and text.isascii() and text.isprintable() else None


class UnknownRoute(ApiHandler):
    """Any address that no feature claims."""

    public = True

    def _not_found(self, *_: Any) -> None:
        raise errors.NotFound

    get = post = put = delete = patch = head = options = _not_found
