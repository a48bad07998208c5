"""A phone's line to the server: the WebSocket, whose frames are sorted into answers and events to wait for."""

import asyncio
import itertools
import json
from typing import Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.phones.signal_protocol import Json

PATIENCE = 10.0  # seconds for an answer or a frame; anything slower is a fault


class Refused(Exception):
    """An error that the server answered, over HTTP (then with its status) or in a frame."""

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(f"{code} ({status}): {message}")
        self.code = code
        self.status = status


class Disconnected(Exception):
    """The socket closed; `code` is the WebSocket's close code."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"the socket was closed with {code}")
        self.code = code


class Line:
    """One open socket of the user called `name`."""

    def __init__(self, socket: ClientConnection, name: str) -> None:
        self._socket = socket
        self._name = name
        self._ids = itertools.count(1)
        self._answers: dict[str, asyncio.Future[Json]] = {}
        self._frames: list[Json] = []
        self._came = asyncio.Condition()
        self._closed: Disconnected | None = None
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, base_url: str, headers: dict[str, str], name: str) -> Self:
        address = base_url.replace("http", "ws", 1) + "/ws"
        return cls(await connect(address, additional_headers=headers, proxy=None, open_timeout=PATIENCE), name)

    async def close(self) -> None:
        await self._socket.close()
        await self._reader

    async def send(self, kind: str, **fields: object) -> Json:
        """Send a frame and give its `ack`; an `error` is raised as `Refused`."""
        number = f"{self._name}-{next(self._ids)}"
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            await self._socket.send(json.dumps({"type": kind, "id": number, **fields}))
            frame = await asyncio.wait_for(answer, PATIENCE)
        except ConnectionClosed:
            frame = {"type": "closed"}
        except TimeoutError:
            raise AssertionError(f"{self._name} got no answer to {kind} in {PATIENCE} s") from None
        finally:
            del self._answers[number]
        if frame["type"] == "closed":
            raise Disconnected(self._socket.close_code)
        if frame["type"] == "error":
            raise Refused(frame["code"], frame["message"])
        return frame

    async def expect(self, kind: str, timeout: float = PATIENCE, **fields: object) -> Json:
        """Take the first frame of that type whose fields are those given, waiting for it if it has not come yet."""
        try:
            async with asyncio.timeout(timeout), self._came:
                while True:
                    for frame in self.came(kind, **fields):
                        self._frames.remove(frame)
                        return frame
                    if self._closed is not None:
                        raise self._closed
                    await self._came.wait()
        except TimeoutError:
            kinds = [frame["type"] for frame in self._frames]
            raise AssertionError(f"{self._name} waited {timeout} s for {kind} {fields}; came: {kinds}") from None

    def came(self, kind: str, **fields: object) -> list[Json]:
        """The frames of that type that have arrived and were not taken yet."""
        wanted = {"type": kind, **fields}
        return [frame for frame in self._frames if all(frame.get(name) == value for name, value in wanted.items())]

    async def _read(self) -> None:
        try:
            async for text in self._socket:
                await self._sort(json.loads(text))
        except ConnectionClosed:
            pass
        async with self._came:
            self._closed = Disconnected(self._socket.close_code)
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_result({"type": "closed"})
            self._came.notify_all()

    async def _sort(self, frame: Json) -> None:
        answer = self._answers.get(frame.get("id", "")) if frame["type"] in ("ack", "error") else None
        if answer is not None and not answer.done():
            answer.set_result(frame)
            return
        async with self._came:
            self._frames.append(frame)
            self._came.notify_all()
