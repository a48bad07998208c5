"""The base of every HTTP endpoint: tokens, body sizes, strict JSON, errors and headers."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlencode

import structlog
from tornado.web import HTTPError, RequestHandler, stream_request_body

from config.logs import error_fields
from config.traces import EndRequest
from handlers.http.accounting import AccountingHandler
from handlers.http.answering import MAX_BODY as MAX_BODY
from handlers.http.origins import is_allowed
from handlers.http.site import Site, version
from handlers.limits.rates import CLIENT_KEY, SHOW_QUOTA, client_address, limit_key, within
from handlers.tokens import Session
from handlers.wire import errors
from handlers.wire.errors import ApiError, Fault, InvalidRequest
from handlers.wire.operations import Header
from handlers.wire.shapes import Shape, decode

log = structlog.get_logger(__name__)
S = TypeVar("S", bound=Shape)

SLOW_SECONDS = 1.0  # requests that take longer are logged

# A UUID in the pattern of a route; a path without one matches no route.
ID = "([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Optional headers of every request.
HEADERS = (
    Header("X-PrID", "Your own public id. When it is not the token's, 403 `prid_mismatch`."),
    Header("X-Client-Version", "Of the app. Older than the server's `MIN_CLIENT_VERSION`: 426."),
    Header("X-Platform", "`android`, `ios`, …; kept with the session, counted in the metrics."),
    Header("X-Request-ID", "At most 64 of `A-Za-z0-9._-` are taken over; anything else is replaced."),
)
_CORS_HEADERS = ("Authorization", "Content-Type", *(header.name for header in HEADERS))
_CORS_EXPOSED = ("Link", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-ID")
_TRACE_HEADERS = ("traceparent", "tracestate")  # W3C Trace Context
_PLATFORMS = ("android", "ios", "web", "desktop", "none")
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD")


@dataclass(frozen=True, slots=True)
class Client:
    """The app that sent a request, by its headers; stored with its session."""

    platform: str | None
    version: str | None
    address: str = field(repr=False)


@stream_request_body
class ApiHandler(AccountingHandler):
    """An endpoint. It requires a valid token unless its class has ``public = True``."""

    public = False
    # False if GET changes or uses up something: HEAD, which is GET without the body, is answered with 405 there.
    head_allowed = True
    max_body = MAX_BODY
    slow = SLOW_SECONDS
    # The errors that every method of the endpoint may answer with.
    refuses: tuple[type[ApiError], ...] = (
        errors.InvalidRequest,
        errors.Unauthorized,
        errors.TokenExpired,
        errors.PridMismatch,
        errors.TooLarge,
        errors.ClientOutdated,
        errors.RateLimited,
        errors.InternalError,
        errors.Unavailable,
    )
    # Headers that scripts of an allowed origin may send and read, in addition to those of every endpoint.
    cors_request_headers: tuple[str, ...] = ()
    cors_response_headers: tuple[str, ...] = ()

    def __init__(self, application: Site, request: Any, **kwargs: Any) -> None:
        # Before super(), which calls set_default_headers, which needs the id.
        given = request.headers.get("X-Request-ID", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        self._started = time.perf_counter()
        self._session = None
        self._chunks: list[bytes] = []
        application.active += 1
        self._active = True
        self._end_trace: EndRequest | None = None
        self._failed: Exception | None = None
        try:
            super().__init__(application, request, **kwargs)
        except Exception as error:  # from initialize, which super() calls last; else Tornado would drop the connection
            self._failed = error

    # What endpoints use -----------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """The session of the caller. Raises Unauthorized if the request has no token."""
        if self._session is None:
            raise errors.Unauthorized
        return self._session

    @property
    def authenticated(self) -> bool:
        """True if the request has a valid token; public endpoints do not require one."""
        return self._session is not None

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
    def reader(self) -> Hashable:
        return self._session.user_id if self._session is not None else limit_key(self.address)

    @property
    def origin(self) -> str:
        """Scheme and host that the client used; X-Forwarded-Proto counts only from a trusted proxy."""
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
        """The body as received, for signatures over its bytes."""
        return b"".join(self._chunks)

    def body(self, shape: type[S]) -> S:
        """Return the JSON body as ``shape``. Raises InvalidRequest, or ValidationError with all its faults."""
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise errors.UnsupportedMediaType
        return shape.model_validate(decode(self.raw_body))

    def query(self, shape: type[S]) -> S:
        """Return the query string as ``shape``; the last value of a repeated parameter counts."""
        given = {}
        for name, values in self.request.query_arguments.items():
            try:
                given[name] = values[-1].decode("utf-8")
            except UnicodeDecodeError:
                raise InvalidRequest("Some fields are not valid.", details=[Fault(name, "not UTF-8")]) from None
        return shape.model_validate(given, strict=False)

    def count_client(self) -> None:
        """Count a request that opens or refreshes a session, by platform."""
        platform = self.client.platform or "none"
        self.application.metrics.clients.labels(platform if platform in _PLATFORMS else "other").inc()

    def link_next(self, path: str = "", **parameters: object) -> None:
        """Link to the next page of a list (RFC 8288), at this path unless another is given."""
        self.set_header("Link", f'<{path or self.request.path}?{urlencode(parameters)}>; rel="next"')

    # What every endpoint has ----------------------------------------------------------------------------------------

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
                headers["Access-Control-Expose-Headers"] = ", ".join((*_CORS_EXPOSED, *self.cors_response_headers))
        self._show_quotas()  # because a refusal clears the headers

    def _too_large(self) -> ApiError:
        return errors.TooLarge(f"The body is larger than {self.max_body} bytes.")

    def _check_headers(self) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=self.request_id)
        CLIENT_KEY.set(lambda: limit_key(self.address))
        SHOW_QUOTA.set(self._show)
        if self._failed is not None:
            raise self._failed
        self._begin_trace()
        try:
            if self.request.method != "OPTIONS":
                self._check_caller()
        except ApiError:
            self._admit()  # because a refused request is read, too
            raise
        self._admit()
        # Checked here because the connection doesn't know the limit of each endpoint.
        if self.request.method != "OPTIONS" and self.declared_length > self.max_body:
            raise self._too_large()

    def _check_caller(self) -> None:
        """Authenticate the caller. Raises ClientOutdated, Unauthorized, PridMismatch, MethodNotAllowed."""
        headers = self.request.headers
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
            raise errors.MethodNotAllowed  # before an upload begins, which does not check the method

    def _begin_trace(self) -> None:
        """Begin a trace. A parent trace is accepted only from a trusted proxy, because it decides what is recorded."""
        traces, request = self.application.traces, self.request
        if traces.on:
            trusted = within(request.remote_ip or "", self.application.core.trusted_proxies)
            carrier = {name: request.headers[name] for name in _TRACE_HEADERS if trusted and name in request.headers}
            self._end_trace = traces.request(
                request.method or "", self.application.route(self), self.request_id, carrier
            )

    def data_received(self, chunk: bytes) -> Any:
        self._received += len(chunk)
        if self._refusal is not None:  # the body of a refused request is dropped, and read only up to a bound
            return None if self.is_short and self._received <= MAX_BODY else self._refuse_unread()
        if self._received > self.max_body:
            self._chunks.clear()
            return None if self._finished else self.refuse(self._too_large())
        self._chunks.append(chunk)
        return None

    def options(self, *_: Any) -> None:
        """Answer a CORS preflight, and list the methods of this route."""
        self.set_header("Allow", self.allow())
        if "Access-Control-Allow-Origin" in self._headers:
            self.set_header("Access-Control-Allow-Methods", self.allow())
            self.set_header("Access-Control-Allow-Headers", ", ".join((*_CORS_HEADERS, *self.cors_request_headers)))
            self.set_header("Access-Control-Max-Age", "86400")
        self.reply_nothing()

    def head(self, *path: Any, **named: Any) -> Any:
        """Answer as GET does, without the body. It counts against the same limits, because the length of an answer
        reveals much about its content."""
        return self.get(*path, **named)

    @classmethod
    @cache
    def methods(cls) -> tuple[str, ...]:
        """Return the methods that the endpoint implements, which are those that documents list."""
        given = {"HEAD": ApiHandler.head}
        return tuple(
            method
            for method in _METHODS
            if getattr(cls, method.lower()) is not given.get(method, getattr(RequestHandler, method.lower()))
        )

    @classmethod
    @cache
    def allow(cls) -> str:
        """Return the value of the header Allow."""
        own = cls.methods()
        head = ["HEAD"] if "GET" in own and "HEAD" not in own and cls.head_allowed else []
        return ", ".join([*own, *head, "OPTIONS"])

    def compute_etag(self) -> str | None:
        return None  # answers differ by user and time; hashing each would cost more than it saves

    def check_etag_header(self) -> bool:
        return False

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if value is None or isinstance(value, HTTPError) or (self._gone and isinstance(value, errors.Unavailable)):
            return
        refusal = errors.refusal(value, self.application.outages)
        if refusal is None:
            log.error("request_failed", handler=type(self).__qualname__, exc_info=value)
        elif refusal.status in (500, 503):
            handler, cause = type(self).__qualname__, type(value).__name__
            log.warning("request_unavailable", handler=handler, cause=cause, **error_fields(value))

    def _end_request(self, status: int) -> None:
        self._charge(status)
        if self._active:
            self._active = False
            self.application.active -= 1
        if self._end_trace is not None:
            self._end_trace(status)
            self._end_trace = None

    def on_connection_close(self) -> None:
        self._end_request(0)
        super().on_connection_close()

    def on_finish(self) -> None:
        self._end_request(self._status_code)
        seconds = time.perf_counter() - self._started
        self.application.metrics.count_request(
            type(self).__qualname__, self.request.method or "", self._status_code, seconds
        )
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
    """Answers every path that no route matches."""

    public = True

    def _not_found(self, *_: Any) -> None:
        raise errors.NotFound

    get = post = put = delete = patch = head = options = _not_found
