"""An XMPP client for load (RFC 6120, 6121): it signs in, sends chat messages, and counts those that come."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import cast

from tests.bench.load import PATIENCE
from tests.bench.pairs import PAYLOAD
from tests.bench.users import payload

HOST = "localhost"  # the domain that both servers serve
PASSWORD = "only-for-benchmarks"
_STREAM = (
    f"<?xml version='1.0'?><stream:stream to='{HOST}' version='1.0' xmlns='jabber:client'"
    " xmlns:stream='http://etherx.jabber.org/streams'>"
)
_END = b"</message>"
_KEPT = len(_END) - 1  # bytes of a read that may be the beginning of an end


class Client(asyncio.Protocol):
    """One user's stream. ``heard`` is called with the number of messages of each read."""

    partner: Client

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""
        self._awaited: tuple[bytes, asyncio.Future[None]] | None = None
        self.sent = 0
        self._before = self._after = b""
        self.heard: Callable[[int], None] | None = None
        self.refusals: list[bytes] = []
        self.lost = False

    @classmethod
    async def open(cls, host: str, port: int, name: str) -> Client:
        """Connect, sign in with SASL PLAIN, bind a resource, and be available."""
        _, client = await asyncio.get_running_loop().create_connection(lambda: cls(name), host, port)
        await client._ask(_STREAM, b"</stream:features>")
        secret = base64.b64encode(f"\0{name}\0{PASSWORD}".encode()).decode()
        sasl = f"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{secret}</auth>"
        await client._ask(sasl, b"<success")
        await client._ask(_STREAM, b"</stream:features>")
        bind = "<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>bench</resource></bind>"
        await client._ask(f"<iq type='set' id='bind'>{bind}</iq>", b"</iq>")
        await client._ask("<presence/>", b"<presence")  # the server tells it to all of the user's resources: us
        return client

    def write_to(self, partner: Client) -> None:
        """From now on messages go to that user: to the bare address, as a client's first ones do."""
        self.partner = partner
        self._before = f"<message type='chat' to='{partner._name}@{HOST}' id='".encode()
        self._after = f"'><body>{payload(PAYLOAD)}</body></message>".encode()

    def say(self, count: int) -> None:
        messages = []
        for _ in range(count):
            self.sent += 1
            messages.append(b"%b%d%b" % (self._before, self.sent, self._after))
        self._transport.write(b"".join(messages))

    async def _ask(self, stanza: str, answer: bytes) -> None:
        """Send something, and wait until those bytes come."""
        self._awaited = (answer, asyncio.get_running_loop().create_future())
        self._rest = b""
        self._transport.write(stanza.encode())
        async with asyncio.timeout(PATIENCE):
            await self._awaited[1]
        self._awaited = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, which is no subclass

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        if self._awaited is not None:
            self._rest = data
            answer, came = self._awaited
            if answer in data and not came.done():
                came.set_result(None)
            elif (b"<failure" in data or b"<stream:error" in data) and not came.done():
                came.set_exception(ConnectionError(f"refused: {data!r}"))
            return
        count = data.count(_END)
        self._rest = data[-_KEPT:]
        if b"<error" in data or b"<stream:error" in data:
            self.refusals.append(data)
        if count and self.heard is not None:
            self.heard(count)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._awaited is not None and not self._awaited[1].done():
            self._awaited[1].set_exception(ConnectionError(f"closed before it was open: {self._rest!r} {exc!r}"))

    def close(self) -> None:
        self._transport.abort()
