"""The yardstick: the least that Tornado needs to do a job like ours, as a separate program.

No tokens, no database, no limits, no checks: what it costs to speak the protocol at all. It has the same loop, JSON
library, socket options and garbage collector settings as the server. Prints its port, and ends with its standard
input.
"""

from __future__ import annotations

import asyncio
import gc
import sys

import orjson
import uvloop
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

# As many bytes as the profile of one of users.py's accounts.
PROFILE = {
    "user_id": "7a0e6f6c-2f43-4c3b-8a55-6e0f3c1d9b42",
    "public_id": "bench_00000",
    "display_name": "Bench User 0",
    "fingerprint": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "signing_public_key": "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=",
    "avatar_url": "https://cdn.example.org/avatars/00000.webp",
    "bio": "Somebody who exists to be looked up.",
    "is_online": False,
    "last_seen": None,
    "language": "en",
    "created_at": "2025-01-01T00:00:00.000000Z",
}


# A message of 300 bytes, as ours sends it, and its frame.
MESSAGE = {
    "id": "7a0e6f6c-2f43-4c3b-8a55-6e0f3c1d9b42",
    "chat_id": "0b7e4c65-5b25-4e5f-9d0c-0d5a7c6f6b11",
    "seq": 12345,
    "sender_id": "c1a7a2f4-3a0d-4a50-8a2e-9f4f6f8e2d33",
    "client_id": "5f0c9d2e-77a1-4b7e-8f43-1c2d3e4f5a66",
    "encrypted_payload": "n4bQgYhM" * 50,
    "message_type": "text",
    "metadata": {},
    "reply_to": None,
    "forwarded_from": None,
    "reactions": [],
    "created_at": "2025-01-01T00:00:00.000000Z",
    "edited_at": None,
    "expires_at": None,
}
EVENT = {
    "type": "message_new",
    "chat_id": MESSAGE["chat_id"],
    "seq": 12345,
    "created_at": "2025-01-01T00:00:00.000000Z",
    "message": MESSAGE,
}
CHAT = {
    "id": MESSAGE["chat_id"],
    "type": "direct",
    "title": None,
    "avatar_url": None,
    "created_by": MESSAGE["sender_id"],
    "settings": {},
    "created_at": "2025-01-01T00:00:00.000000Z",
    "updated_at": "2025-01-01T00:00:00.000000Z",
    "role": "member",
    "participant_count": 2,
    "last_seq": 12345,
    "read_seq": 12340,
    "delivered_seq": 12345,
    "unread_count": 5,
    "last_message": MESSAGE,
    "peer": {name: PROFILE[name] for name in ("user_id", "public_id", "display_name", "avatar_url")},
}
TO_ALL = "*"  # as to_user_id: to every other socket


class Json(RequestHandler):
    def get(self, *_: str) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(orjson.dumps(self.content()))

    def content(self) -> object:
        raise NotImplementedError

    def compute_etag(self) -> None:
        return None  # as ours


class Profile(Json):
    def content(self) -> object:
        return PROFILE


class Chats(Json):
    def content(self) -> object:
        return [CHAT] * int(self.get_argument("limit"))


class Sync(Json):
    """Pages of events. The cursor is the number of those that are still to come."""

    def content(self) -> object:
        limit, left = int(self.get_argument("limit")), int(self.get_argument("cursor"))
        count = min(limit, left)
        return {"events": [EVENT] * count, "cursor": str(left - count), "has_more": left > count}


class Relay(WebSocketHandler):
    def initialize(self, sockets: dict[str, Relay]) -> None:
        self._sockets = sockets

    def open(self, user_id: str) -> None:
        self.set_nodelay(True)  # as ours
        self._user_id = user_id
        self._sockets[user_id] = self

    def on_close(self) -> None:
        if self._sockets.get(self._user_id) is self:
            del self._sockets[self._user_id]

    def on_message(self, message: str | bytes) -> None:
        frame = orjson.loads(message)
        to = self._sockets.get(frame["to_user_id"])
        if frame["to_user_id"] == TO_ALL:
            data = orjson.dumps(frame)
            for socket in self._sockets.values():
                if socket is not self:
                    socket.write_message(data)
        elif to is not None:
            to.write_message(orjson.dumps(frame))

    def get_compression_options(self) -> None:
        return None  # as ours


async def main() -> None:
    sockets: dict[str, Relay] = {}
    site = Application(
        [
            ("/ws/([0-9a-f-]{36})", Relay, {"sockets": sockets}),
            ("/users/([A-Za-z0-9_]+)", Profile),
            ("/chats", Chats),
            ("/sync", Sync),
        ]
    )
    listening = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(site)
    server.add_sockets(listening)
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)  # as ours
    print(listening[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    await ended.wait()


if __name__ == "__main__":
    uvloop.run(main())
