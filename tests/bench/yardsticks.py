"""The yardstick: the least that Tornado needs to do a job like ours, as a program of its own.

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


class Profile(RequestHandler):
    def get(self, _: str) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(orjson.dumps(PROFILE))

    def compute_etag(self) -> None:
        return None  # as ours


class Relay(WebSocketHandler):
    def initialize(self, sockets: dict[str, Relay]) -> None:
        self._sockets = sockets

    def open(self, user_id: str) -> None:
        self.set_nodelay(True)  # as ours
        self._sockets[user_id] = self

    def on_message(self, message: str | bytes) -> None:
        frame = orjson.loads(message)
        to = self._sockets.get(frame["to_user_id"])
        if to is not None:
            to.write_message(orjson.dumps(frame))

    def get_compression_options(self) -> None:
        return None  # as ours


async def main() -> None:
    sockets: dict[str, Relay] = {}
    site = Application([("/ws/([0-9a-f-]{36})", Relay, {"sockets": sockets}), ("/users/([A-Za-z0-9_]+)", Profile)])
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
