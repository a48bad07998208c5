"""Keep one session connected: reopen its socket as long as the session lives. Copy this into a client.

docs/realtime.md has the rules, docs/clients.md the same loop in Dart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, WebSocketError, websocket_connect

SERVER = "http://localhost:8080"
OPENING = 15.0  # seconds for the handshake and ready together
STEADY = 60.0  # seconds a socket lives before a break counts as the first one again
JITTER = random.SystemRandom()
AT_ONCE = (1001, 4401, 4408)
TOO_MANY_SOCKETS, TOO_MANY_FRAMES, RESTARTING, TOKEN_ENDED = 4409, 4429, 1012, 4401


class LoggedOut(Exception):
    """The session has ended: delete its tokens, show the login."""


class Outdated(Exception):
    """The server requires a newer app."""


class TryLater(Exception):
    """A proxy's 502, a 503, a 429: the session goes on."""


# No network, a proxy's response, invalid JSON.
BROKEN = (TryLater, WebSocketError, HTTPError, OSError, TimeoutError, ValueError)


class Tokens:
    """The tokens of a session, with one refresher. An app stores the refresh token on disk."""

    def __init__(self, signed_in: dict[str, Any]) -> None:
        self._access, self._refresh = signed_in["access_token"], signed_in["refresh_token"]
        self._one_at_a_time = asyncio.Lock()

    async def access(self, *, refused: str | None = None) -> str:
        """Return the access token; a new one if the server has rejected ``refused``. Raises LoggedOut, TryLater."""
        async with self._one_at_a_time:
            if self._access == refused:  # else another task has refreshed it meanwhile
                # No Authorization header here: /auth/refresh also returns 401 for an expired token.
                answer = await ask("POST", "/auth/refresh", {"refresh_token": self._refresh})
                if answer.code in (401, 403):
                    raise LoggedOut
                if answer.code != 200:
                    raise TryLater(str(answer.code))
                session = json.loads(answer.body)
                self._refresh = session["refresh_token"]  # an app stores it before it uses the access token
                self._access = session["access_token"]
            return self._access


async def ask(method: str, path: str, body: Any = None, token: str = "") -> Any:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    text = None if body is None else json.dumps(body)
    return await AsyncHTTPClient().fetch(
        HTTPRequest(SERVER + path, method, headers, text, request_timeout=OPENING), raise_error=False
    )


class Connection:
    """A socket that reconnects. ``ready`` and ``frame`` handle frames; ``returned`` waits until the user is back."""

    def __init__(
        self, tokens: Tokens, ready: Callable[[Any], None], frame: Callable[[Any], None], returned: Callable[[], Any]
    ) -> None:
        self._tokens, self._ready, self._frame, self._returned = tokens, ready, frame, returned
        self._sent = ""  # the token that the socket uses
        self._prolonging: asyncio.Task[None] | None = None

    async def stay(self) -> None:
        """Stay connected until the session ends. Raises LoggedOut, Outdated."""
        attempt = 0
        while True:
            began, code = time.monotonic(), None
            with contextlib.suppress(*BROKEN):  # back off as usual
                code = await self._live()
            if code is not None and time.monotonic() - began > STEADY:
                attempt = 0
            await self.wait(code, attempt)
            attempt += 1

    async def wait(self, code: int | None, attempt: int) -> None:
        """Wait as long as the close code requires. None: the socket never opened."""
        if code == TOO_MANY_SOCKETS:  # ten others are open, and a new one would close one
            await self._returned()
        elif code == TOO_MANY_FRAMES:
            await self.pause(10 + JITTER.uniform(0, 5))
        elif code == RESTARTING:
            await self.pause(JITTER.uniform(1, 5))
        elif code in AT_ONCE and attempt == 0:
            await self.pause(JITTER.uniform(0, 1))
        else:
            await self.pause(JITTER.uniform(0, min(30, 2 ** min(attempt, 5))))

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _live(self) -> int | None:
        """Open one socket and read it until it closes. Returns the close code."""
        self._sent = await self._tokens.access()
        request = HTTPRequest(f"ws{SERVER[4:]}/ws", headers={"Authorization": f"Bearer {self._sent}"})
        async with asyncio.timeout(OPENING) as opening:
            try:
                socket = await websocket_connect(request, ping_interval=20, ping_timeout=10)
            except HTTPError:  # no upgrade: a proxy's 502, or a rejection
                return await self._refused()
            try:
                while (text := await socket.read_message()) is not None:
                    frame = json.loads(text)
                    if frame["type"] == "ready":
                        opening.reschedule(None)
                        self._ready(frame)
                    elif frame["type"] == "token_expiring":
                        self._prolonging = asyncio.create_task(self._prolong(socket))
                    else:  # also unknown types, which the app ignores
                        self._frame(frame)
            finally:
                socket.close()
        if socket.close_code == TOKEN_ENDED:
            await self._tokens.access(refused=self._sent)
        return socket.close_code

    async def _refused(self) -> int | None:
        """Find out why there was no upgrade. Refresh only if the server itself returns 401 for this token."""
        answer = await ask("GET", "/users/me", token=self._sent)
        if answer.code == 426:
            raise Outdated
        if answer.code != 401:
            return None
        await self._tokens.access(refused=self._sent)
        return TOKEN_ENDED

    async def _prolong(self, socket: WebSocketClientConnection) -> None:
        """Send a new token on the same socket. If that fails, the server closes the socket with 4401."""
        try:
            self._sent = await self._tokens.access(refused=self._sent)
            await socket.write_message(json.dumps({"type": "auth", "access_token": self._sent}))
        except (LoggedOut, *BROKEN) as error:
            print(f"The token could not be renewed: {type(error).__name__}")
