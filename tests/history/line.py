"""A client's way to the servers: one socket and HTTP, to whichever server is up, and the truth about lost answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.iostream import StreamClosedError
from tornado.simple_httpclient import HTTPTimeoutError
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

from tests.bench.users import User
from tests.client import Answer, ask
from tests.history.ledger import Ledger
from tests.history.stage import Theatre

PATIENCE = 15.0  # seconds; the contract has an answer within 3, and this machine has other things to do
GONE = (OSError, HTTPClientError, StreamClosedError, WebSocketClosedError)

Frame = dict[str, Any]


class Lost(Exception):
    """No answer came, or one that says "later": what was asked for may have been done or not."""


class Refused(Exception):
    """It was not done, and never will be."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code
        self.lost = 0  # how many tries before had no answer, and may have been done


class Line:
    """``heard`` is called with each frame that has a seq, ``opened`` once a socket is open, and ``renewed``
    before that if its epoch is not that of the socket before."""

    def __init__(
        self,
        user: User,
        stage: Theatre,
        luck: random.Random,
        ledger: Ledger,
        heard: Callable[[Frame], None],
        opened: Callable[[], None],
        renewed: Callable[[], None] | None = None,
    ) -> None:
        self._user, self.stage, self._luck, self._ledger = user, stage, luck, ledger
        self._heard, self._opened, self._renewed = heard, opened, renewed
        self._epoch: str | None = None
        self._socket: WebSocketClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[str, asyncio.Future[Frame]] = {}
        self._ids = itertools.count(1)
        self._opening = asyncio.Lock()

    @property
    def open(self) -> bool:
        return self._socket is not None

    async def connect(self) -> None:
        """Have an open socket. Raises Lost."""
        async with self._opening:
            if self._socket is not None:
                return
            url = self._url()
            headers = {"Authorization": f"Bearer {self._user.token}"}
            request = HTTPRequest(url.replace("http", "ws", 1) + "/ws", headers=headers)
            socket, ready = None, None
            try:
                async with asyncio.timeout(PATIENCE):
                    socket = await websocket_connect(request)
                    ready = await socket.read_message()
            except TimeoutError:
                self._ledger.fault("hung", "", f"a socket was not ready within {PATIENCE:.0f} s")
                raise Lost from None
            except GONE as error:
                if isinstance(error, HTTPClientError) and error.code not in (503, 599):
                    self._ledger.fault("answer", "", f"a socket was refused with {error.code}")
                raise Lost from error
            finally:
                if socket is not None and ready is None:
                    socket.close()
            if ready is None:
                raise Lost
            first = orjson.loads(ready)
            if first["type"] != "ready":
                self._ledger.fault("answer", "", f"a socket began with {first['type']}")
            self._socket = socket
            former, self._epoch = self._epoch, first.get("epoch")
            if self._renewed is not None and former not in (None, self._epoch):
                self._renewed()
            self._reader = asyncio.create_task(self._read(socket))
            self._opened()

    async def _read(self, socket: WebSocketClientConnection) -> None:
        while True:
            raw = await socket.read_message()
            if raw is None:
                break
            frame = orjson.loads(raw)
            if frame["type"] in ("ack", "error") and frame.get("id") in self._waiting:
                self._waiting.pop(frame["id"]).set_result(frame)
            elif frame["type"] == "error":
                self._ledger.fault("answer", "", f"an error that answers nothing: {frame.get('code')}")
            elif "seq" in frame and "chat_id" in frame and frame["type"] != "ack":
                self._heard(frame)
        self._ledger.counts[f"closed with {socket.close_code}"] += 1
        socket.close()
        self._socket = None
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(Lost())

    async def say(self, kind: str, **fields: Any) -> Frame:
        """Send a frame; its ack. Raises Lost or Refused."""
        await self.connect()
        socket = self._socket
        if socket is None:
            raise Lost
        frame_id = f"f{next(self._ids)}"
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[frame_id] = answer
        try:
            async with asyncio.timeout(PATIENCE):
                await socket.write_message(orjson.dumps({"type": kind, "id": frame_id, **fields}).decode())
                frame = await answer
        except TimeoutError:
            self._ledger.fault("hung", fields.get("chat_id", ""), f"{kind} was not answered within {PATIENCE:.0f} s")
            raise Lost from None
        except GONE as error:
            raise Lost from error
        finally:
            self._waiting.pop(frame_id, None)
        if frame["type"] == "ack":
            return frame
        self._ledger.counts[f"error {frame['code']}"] += 1
        if frame["code"] == "unavailable":
            raise Lost
        raise Refused(frame["code"])

    async def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """One request; an answer below 400. Raises Lost or Refused."""
        url = self._url()
        try:
            answer = await ask(url, method, path, body, token=self._user.token)
        except HTTPTimeoutError as error:
            if "while connecting" not in str(error):
                self._ledger.fault("hung", "", f"{method} {path} was not answered within 15 s")
            raise Lost from error
        except GONE as error:
            raise Lost from error
        if answer.status < 400:
            return answer
        self._ledger.counts[f"status {answer.status}"] += 1
        if answer.status == 503:
            raise Lost
        if answer.status >= 500:
            self._ledger.fault("answer", "", f"{method} {path} was answered with {answer.status}")
            raise Lost
        raise Refused(answer.code)

    async def surely(self, doing: Callable[[], Awaitable[Any]]) -> Any:
        """Do it again and again until there is an answer. Raises Refused."""
        lost = 0
        while True:
            try:
                return await doing()
            except Refused as refusal:
                refusal.lost = lost
                raise
            except Lost:
                lost += 1
                self._ledger.counts["lost answers"] += 1
                self._ledger.last_lost = time.monotonic()
                await asyncio.sleep(self._luck.uniform(0.05, 0.3))

    def _url(self) -> str:
        url = self.stage.url(self._luck)
        if url is None:
            raise Lost
        return url

    async def close(self) -> None:
        """Close the socket, if there is one."""
        if self._socket is not None:
            self._socket.close()
        if self._reader is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._reader], timeout=5)
