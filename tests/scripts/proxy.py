"""A reverse proxy that ends TLS, as the checklist wants it, or with one thing that it does wrong."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import re
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

ADDRESS = "127.0.0.9"  # from which it asks the server: another one than the tests', who are not trusted then


@dataclass
class Proxy:
    """Each of these is a fault, when it is not what it is here."""

    appends: bool = True  # the address that it sees, to X-Forwarded-For
    upgrades: bool = True
    hsts: bool = True
    ahead: int = 0  # seconds, of the clock by which it writes Date
    largest: int = 1 << 62  # bytes of a body
    collects: bool = False  # bodies, before it passes them on
    hides: bool = False  # /metrics, which is not a fault
    drops: str = ""  # a header
    port: int = field(default=0, init=False)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def request(self, head: str, peer: str) -> str:
        """A request's head as the server gets it."""
        if self.appends:
            before = re.search(r"(?mi)^X-Forwarded-For: (.*?)\r$", head)
            head = re.sub(r"(?mi)^X-Forwarded-For:.*\n", "", head)
            head += f"X-Forwarded-For: {before[1] + ', ' if before else ''}{peer}\r\n"
        if not self.upgrades:
            head = re.sub(r"(?mi)^(Upgrade|Connection):.*\n", "", head)
        if self.drops:
            head = re.sub(rf"(?mi)^{self.drops}:.*\n", "", head)
        return head + "X-Forwarded-Proto: https\r\n"

    def answer(self, head: str) -> str:
        """An answer's head as the client gets it."""
        date = email.utils.formatdate(time.time() + self.ahead, usegmt=True)
        head = re.sub(r"(?mi)^Date:.*\n", f"Date: {date}\r\n", head)
        return head + ("Strict-Transport-Security: max-age=63072000\r\n" if self.hsts else "")


@contextlib.asynccontextmanager
async def proxying(behind: int, context: ssl.SSLContext, proxy: Proxy) -> AsyncIterator[Proxy]:
    """Stand before the server on port ``behind`` until the block ends."""

    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await _pass_on(proxy, behind, reader, writer)
        finally:
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(proxy: Proxy, behind: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()[:-2]
    length = re.search(r"(?mi)^Content-Length: (\d+)", head)
    declared = int(length[1]) if length else 0
    refused = (413, "Too Large") if declared > proxy.largest else None
    if proxy.hides and head.startswith("GET /metrics"):
        refused = 403, "Forbidden"
    if refused is not None:
        page = f"<h1>{refused[1]}</h1>"
        writer.write(f"HTTP/1.1 {refused[0]} {refused[1]}\r\nContent-Length: {len(page)}\r\n\r\n{page}".encode())
        await writer.drain()
        await reader.read()  # what it still sends, and its end
        return
    body = await reader.readexactly(declared) if proxy.collects else b""
    peer = writer.get_extra_info("peername")[0]
    from_server, to_server = await asyncio.open_connection("127.0.0.1", behind, local_addr=(ADDRESS, 0))
    try:
        to_server.write(proxy.request(head, peer).encode() + b"\r\n" + body)
        upwards = asyncio.ensure_future(_pump(reader, to_server))
        try:
            answer = (await from_server.readuntil(b"\r\n\r\n")).decode()[:-2]
            writer.write(proxy.answer(answer).encode() + b"\r\n")
            await _pump(from_server, writer)
            # The server may end its side first, and read on: so does a proxy, or the client never reads the answer.
            await asyncio.wait([upwards], timeout=1)
        finally:
            upwards.cancel()
            await asyncio.gather(upwards, return_exceptions=True)
    finally:
        to_server.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while block := await reader.read(65536):
            writer.write(block)
            await writer.drain()
