"""The WebSocket endpoint: handles frames in order, answers them by id, applies limits, turns errors into frames."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any

import structlog
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.websocket import WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from handlers.http.base import ApiHandler
from handlers.http.origins import is_allowed, is_own
from handlers.limits.share import SECONDS_PER_SOCKET, Share
from handlers.sockets import hub
from handlers.sockets.hub import Hub, Peer
from handlers.sockets.peer import Socket
from handlers.sockets.rfc6455 import Protocol, Violation
from handlers.sockets.turns import Turns
from handlers.tokens import Tokens
from handlers.wire import errors, operations
from handlers.wire.client_frames import ClientFrame, ack_fields
from handlers.wire.costs import BYTES_IN, FRAMES, READS, Cost
from handlers.wire.errors import ApiError, InvalidRequest, Unauthorized
from handlers.wire.frames import AckFields, Ready
from handlers.wire.operations import Header, operation
from handlers.wire.shapes import Shape, check_strings_and_depth, parse, timestamp

log = structlog.get_logger(__name__)

MAX_FRAME = 128 * 1024  # bytes; contract section 5
HEARTBEAT_SECONDS = 30  # between call_heartbeat frames; sent to clients in `ready`
# Bytes of frames that the kernel buffers for a socket, twice as many with its bookkeeping. By default it buffers 4 MiB
# for a client that reads nothing; 1,000 of them would take 4 GiB that no limit of ours counts.
SEND_BUFFER_BYTES = 128 * 1024

# Replaces the request of an open socket, to free its memory.
_UPGRADED = HTTPServerRequest(
    start_line=RequestStartLine("GET", "/ws", "HTTP/1.1"), headers=HTTPHeaders({"Host": "upgraded"})
)


@dataclass(frozen=True, slots=True)
class Event:
    """A frame type of clients: its shape, and the function that receives (peer, shape) and returns the ack's fields.

    A function that waits for nothing returns its answer at once. A function whose work has begun, and ends in the order
    in which it began, returns a Future: later frames are handled meanwhile, and answered after it. Any other function
    returns a coroutine: it begins when all earlier frames are answered, and later frames wait.
    """

    shape: type[Shape]
    handle: Callable[[Peer, Any], AckFields | Awaitable[AckFields]]
    cost: Cost | None = None  # spent from the account's budgets, in addition to the frame and its bytes
    refuses: tuple[type[ApiError], ...] = ()  # in addition to client_frames.REFUSED
    limits: Mapping[str, str] = field(default_factory=dict)  # settings of rates, each with what it is counted by

    def declared(self) -> ClientFrame:
        """Return its description for the OpenAPI document."""
        return ClientFrame(self.shape, ack_fields(self.handle), self.refuses, tuple(self.limits.items()))


class Auth(Shape):
    """Prolong the socket with a fresh access token of the same user."""

    access_token: str


def auth_event(tokens: Tokens) -> Event:
    """Return the frame ``auth {access_token}``, which continues an open socket with a new token of the same user."""

    def prolong(peer: Peer, auth: Auth) -> None:
        session = tokens.verify(auth.access_token)
        if session.user_id != peer.session.user_id:
            raise errors.Forbidden("The token belongs to another user.")
        peer.prolong(session)

    refuses = (errors.Unauthorized, errors.TokenExpired, errors.Forbidden)
    return Event(Auth, prolong, cost=READS, refuses=refuses)


class SocketHandler(WebSocketHandler, ApiHandler):
    """``/ws``. The token is in the Authorization header, or from browsers in the subprotocol ``bearer.<token>``."""

    public = False
    head_allowed = False  # GET only opens a WebSocket

    def initialize(
        self,
        hub: Hub,
        epoch: Callable[[], str],
        events: Mapping[str, Event],
        welcome: Callable[[Peer], Awaitable[None]],
    ) -> None:
        self._hub = hub
        self._epoch = epoch
        self._events = events
        self._welcome = welcome

    # The handshake ------------------------------------------------------------------------------------------------

    def _check_headers(self) -> None:
        offered = [item.strip() for item in self.request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        bearer = next((item[7:] for item in offered if item.startswith("bearer.")), None)
        if bearer is not None and "Authorization" not in self.request.headers:
            if "mimu.v1" not in offered:
                raise Unauthorized("Offer the subprotocol mimu.v1 together with the token.")
            self.request.headers["Authorization"] = f"Bearer {bearer}"
        super()._check_headers()
        if self.request.method != "GET":
            raise errors.MethodNotAllowed  # also for OPTIONS
        headers = self.request.headers
        if headers.get("Upgrade", "").lower() != "websocket" or "upgrade" not in headers.get("Connection", "").lower():
            raise InvalidRequest("This URL accepts WebSocket connections only.")
        if headers.get("Sec-WebSocket-Version") != "13" or "Sec-WebSocket-Key" not in headers:
            raise InvalidRequest("The WebSocket handshake must have version 13 (RFC 6455) and a key.")
        if not self.check_origin(self.request.headers.get("Origin")):
            raise errors.Forbidden("This origin is not allowed to open WebSockets here.")

    def check_origin(self, origin: str | None) -> bool:
        """True if there is no Origin (an app), or it is our own host or in CORS_ALLOW_ORIGINS."""
        if origin is None:
            return True
        allowed = self.application.core.cors_allow_origins
        return is_allowed(origin, allowed) or is_own(origin, self.request.headers.get("Host", ""))

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return "mimu.v1" if "mimu.v1" in subprotocols else None

    @property
    def max_message_size(self) -> int:
        return MAX_FRAME

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        protocol = super().get_websocket_protocol()
        return Protocol(self, self, protocol.params) if isinstance(protocol, WebSocketProtocol13) else None

    @operation(
        {101: operations.Answer(words="The socket is open. The first frame is `ready`.")},
        refuses=(errors.Forbidden,),
        limits={"rate_limit_sockets": "user"},
        headers=(
            Header("Upgrade", "`websocket`", required=True),
            Header("Connection", "`Upgrade`", required=True),
            Header("Sec-WebSocket-Version", "13 (RFC 6455)", required=True),
            Header("Sec-WebSocket-Key", "16 random bytes, base64", required=True),
            Header("Sec-WebSocket-Protocol", "From browsers: `mimu.v1, bearer.<token>`."),
        ),
        cost=READS,
    )
    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Open a WebSocket.

        The token comes as elsewhere, or from a browser in the subprotocols `mimu.v1, bearer.<token>`. An `Origin` that
        is neither our own host nor in `CORS_ALLOW_ORIGINS` is 403. Frames are JSON texts of at most 128 KiB, 60 a
        second. `x-frames` has those that clients send, `x-replies` the ack and the errors that each of these gets, and
        `x-server-frames` those that the server sends.
        """
        await self.limit("sockets", self.application.core.rate_limit_sockets, str(self.session.user_id))
        await WebSocketHandler.get(self, *args, **kwargs)

    async def _run(self, share: Share, method: Callable[[], Awaitable[None] | None]) -> None:
        share.end(
            share.begin() or await share.begin_in_turn()
        )  # ended at once, because the method ends with the socket
        share.add_work(SECONDS_PER_SOCKET)
        pending = method()
        assert pending is not None
        await pending

    # An open socket -----------------------------------------------------------------------------------------------

    async def open(self, *_: str, **__: str) -> None:
        session = self._session
        assert session is not None  # prepare() has rejected every other caller
        self.peer = Socket(self, self.application.metrics, session)
        self._turns = Turns(self)
        self.set_nodelay(True)
        connection = self.ws_connection
        assert isinstance(connection, Protocol)  # ours, see get_websocket_protocol
        connection.stream.socket.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER_BYTES)
        # Free the request, its connection and its answer: together they are larger than the socket itself, 40 MiB for
        # 9,000 sockets.
        self.request = _UPGRADED
        self._headers = _UPGRADED.headers
        self._chunks = []
        self._quotas = None
        await self._hub.register(self.peer)
        if self.application.tokens.is_revoked(session):  # revoked during the handshake, before the hub had this socket
            self.peer.close(hub.SESSION_ENDED, "session ended")
            return
        self.peer.schedule()
        ready: Ready = {
            "type": "ready",
            "user_id": str(session.user_id),
            "session_id": str(session.session_id),
            "server_time": timestamp(datetime.now(UTC)),
            "heartbeat_seconds": HEARTBEAT_SECONDS,
            "epoch": self._epoch(),
        }
        self.peer.send(ready)
        # In the background, so that a slow database doesn't block the reader.
        self._run_in_background(self._greet())

    async def _greet(self) -> None:
        try:
            await self._welcome(self.peer)
        except Exception as error:  # a feature's greeting that fails must not lock the user out
            log.error("welcome_failed", exc_info=error)
        self.peer.end_welcome()

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work that may outlive the socket; the server waits for it before it stops."""
        self.application.run_in_background(work)

    def admit_frame(self) -> bool:
        """Count a frame. Returns False if it should be dropped. Raises Violation if frames come too fast."""
        if self.peer.closing:
            return False
        if self.application.limits.on and not self.peer.bucket.take():
            raise Violation(hub.FLOOD, "too many frames")
        return True

    def fail(self, violation: Violation) -> None:
        """Close the socket: the client broke the protocol or a limit."""
        self.peer.close(violation.code, violation.reason)

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        return self._turns.take(message)

    async def on_large_message(self, message: str | bytes, share: Share) -> None:
        """Handle a large frame in the account's turn, and keep the turn until it is answered: only then its cost is
        known, and its recipients must not receive more from one account than they can handle."""
        async with share.large:
            await share.wait_turn()
            if self.peer.closing:
                return
            pending = self.on_message(message)
            if pending is not None:
                await pending
            await self._turns.wait_until_idle()

    def handle(self, message: str | bytes) -> Awaitable[None] | None:
        """Handle one frame. Returns None if that is done, else what to await."""
        frame_id: str | None = None
        event: Event | None = None
        account = self._account
        try:
            if not isinstance(message, str):
                raise InvalidRequest("Frames must be text, not binary.")
            frame = parse(message)
            if not isinstance(frame, dict):
                raise InvalidRequest("A frame must be a JSON object.")
            frame_id = _frame_id(frame)  # first, so that every later error can contain it
            check_strings_and_depth(message, frame)
            kind = frame.get("type")
            event = self._events.get(kind) if isinstance(kind, str) else None
            if event is None or not isinstance(kind, str):
                raise InvalidRequest("Unknown frame type.")
            self.application.metrics.count_received(kind)
            if account is not None:
                account.spend_frame(event.cost or READS, _size(message))
            answer: Any = event.handle(self.peer, event.shape.model_validate(frame))
            if isinstance(answer, asyncio.Future):
                return self._turns.add(frame_id, answer)
            if answer is not None and not isinstance(answer, Mapping):
                return self._finish_frame(answer, frame_id)
            if self._turns.has_under_way:
                return self._turns.add(frame_id, _done(answer))
            self._ack(frame_id, answer)
        except Exception as error:
            if event is None and account is not None:  # an invalid frame costs as much to read
                account.charge(FRAMES, 1)
                account.charge(BYTES_IN, _size(message))
            if self._turns.has_under_way:
                return self._turns.add(frame_id, _done(None, error))
            self._refuse(frame_id, error)
        return None

    def answer(self, frame_id: str | None, answered: asyncio.Future[AckFields]) -> None:
        try:
            self._ack(frame_id, answered.result())
        except Exception as error:
            self._refuse(frame_id, error)

    async def _finish_frame(self, answer: Awaitable[AckFields], frame_id: str | None) -> None:
        try:
            await self._turns.wait_until_answered()
            self._ack(frame_id, await (answer if self.share is None else self._run_in_share(answer, self.share)))
        except Exception as error:
            self._refuse(frame_id, error)

    async def _run_in_share(self, answer: Awaitable[AckFields], share: Share) -> AckFields:
        """Await a slow frame within the account's share: like requests, only few of them are at work at once."""
        began = share.begin() or await share.begin_eventually()
        try:
            return await answer
        finally:
            share.end(began)

    def _ack(self, frame_id: str | None, fields: AckFields) -> None:
        if frame_id is not None:
            self.peer.send({"type": "ack", "id": frame_id, **(fields or {})})

    def _refuse(self, frame_id: str | None, error: Exception) -> None:
        refusal: ApiError | None = errors.refusal(error, self.application.outages)
        if refusal is None:
            log.error("frame_failed", exc_info=error)
            refusal = errors.InternalError()
        self.application.metrics.frames_refused.labels(refusal.code).inc()
        body = refusal.body()
        body["code"] = body.pop("error")
        if "Retry-After" in refusal.headers:
            body["retry_after"] = int(refusal.headers["Retry-After"])
        self.peer.send({"type": "error", **({} if frame_id is None else {"id": frame_id}), **body})

    def on_pong(self, data: bytes) -> None:
        self.peer.answered = time.monotonic()

    def on_connection_close(self) -> None:
        self._end_request(0)
        WebSocketHandler.on_connection_close(self)

    def on_close(self) -> None:
        peer = getattr(self, "peer", None)
        if peer is not None:
            peer.mark_closed()
            self._turns.close()
            self._hub.unregister(peer)

    def on_finish(self) -> None:
        """Count rejected handshakes as requests; the time of an accepted one means nothing."""
        self._end_request(self._status_code)
        if self._status_code != 101:
            ApiHandler.on_finish(self)

    def get_compression_options(self) -> None:
        return None  # ciphertext does not compress, and deflate takes 150 KiB per socket


def _size(message: str | bytes) -> int:
    """Return the bytes of a frame on the wire."""
    return len(message) if isinstance(message, bytes) or message.isascii() else len(message.encode())


def _done(answer: AckFields, error: Exception | None = None) -> asyncio.Future[AckFields]:
    """Return a completed future, for an answer that waits only for earlier ones."""
    future: asyncio.Future[AckFields] = asyncio.get_running_loop().create_future()
    if error is None:
        future.set_result(answer)
    else:
        future.set_exception(error)
    return future


def _frame_id(frame: dict[str, Any]) -> str | None:
    value = frame.get("id")
    if value is not None and (not isinstance(value, str) or not 1 <= len(value) <= 64):
        raise InvalidRequest("id must be a text of 1 to 64 characters.")
    return value
