"""The base of every HTTP endpoint: tokens, sizes, strict JSON, errors and headers, the same for all."""

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
from config.traces import Ended
from handlers.http.accounting import AccountingHandler
from handlers.http.answering import MAX_BODY as MAX_BODY
from handlers.http.origins import is_allowed
from handlers.http.site import Site, version
from handlers.limits.rates import CLIENT_KEY, SHOW, client_address, limit_key, within
from handlers.tokens import Session
from handlers.wire import errors
from handlers.wire.errors import ApiError, Fault, InvalidRequest
from handlers.wire.operations import Header
from handlers.wire.shapes import Shape, decode

log = structlog.get_logger(__name__)
S = TypeVar("S", bound=Shape)

SLOW = 1.0  # seconds; a request that takes longer is worth a line in the log

# A UUID in the pattern of a route: what does not look like one is no address of ours.
ID = "([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# What any request may bear. None of them is ever needed.
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
    """What a request says of the app that sent it; stored with its session."""

    platform: str | None
    version: str | None
    address: str = field(repr=False)


@stream_request_body
class ApiHandler(AccountingHandler):
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
        errors.RateLimited,
        errors.InternalError,
        errors.Unavailable,
    )
    # Headers that scripts of a listed origin may send and read here, beside those of every endpoint.
    cors_takes: tuple[str, ...] = ()
    cors_shows: tuple[str, ...] = ()

    def __init__(self, application: Site, request: Any, **kwargs: Any) -> None:
        # Before super(): set_default_headers, which it calls, wants the id.
        given = request.headers.get("X-Request-ID", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        self._started = time.perf_counter()
        self._session = None
        self._chunks: list[bytes] = []
        application.active += 1
        self._active = True
        self._answered: Ended | None = None
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
    def authenticated(self) -> bool:
        """True where a valid token came, which a public endpoint does not ask for."""
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

    def count_client(self) -> None:
        """Count a request that signs an app in or keeps it signed in, by platform."""
        platform = self.client.platform or "none"
        self.application.metrics.clients.labels(platform if platform in _PLATFORMS else "other").inc()

    def link_next(self, path: str = "", **parameters: object) -> None:
        """Point to the next page of a list (RFC 8288), of this address unless another path is given."""
        self.set_header("Link", f'<{path or self.request.path}?{urlencode(parameters)}>; rel="next"')

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
        self._show_quotas()  # a refusal clears the headers first

    def _too_large(self) -> ApiError:
        return errors.TooLarge(f"The body is larger than {self.max_body} bytes.")

    def _judge_headers(self) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=self.request_id)
        CLIENT_KEY.set(lambda: limit_key(self.address))
        SHOW.set(self._show)
        if self._failed is not None:
            raise self._failed
        self._begin_trace()
        try:
            if self.request.method != "OPTIONS":
                self._judge_caller()
        except ApiError:
            self._admit()  # a refused request is read, too
            raise
        self._admit()
        # The connection's own limit is lifted because it doesn't know how much each endpoint takes.
        if self.request.method != "OPTIONS" and self.declared > self.max_body:
            raise self._too_large()

    def _judge_caller(self) -> None:
        """Find out who asks, and by which app. Raises ClientOutdated, Unauthorized, PridMismatch, MethodNotAllowed."""
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
            raise errors.MethodNotAllowed  # before an upload begins, which looks at no method

    def _begin_trace(self) -> None:
        """A trace of someone else's is taken on only from a proxy that is trusted: it says what is to be recorded."""
        traces, request = self.application.traces, self.request
        if traces.on:
            trusted = within(request.remote_ip or "", self.application.core.trusted_proxies)
            carrier = {name: request.headers[name] for name in _TRACE_HEADERS if trusted and name in request.headers}
            self._answered = traces.request(
                request.method or "", self.application.route(self), self.request_id, carrier
            )

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

    def _not_active(self, status: int) -> None:
        self._charge(status)
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
