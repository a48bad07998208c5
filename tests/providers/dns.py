"""A DNS server on the loopback, for tests: it answers for the names it knows, and leaves others without an answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class Names(asyncio.DatagramProtocol):
    """``known``: addresses by name; a name without any doesn't exist. A query for another name never gets an answer."""

    def __init__(self, known: Mapping[str, Sequence[str]]) -> None:
        self.known = {f"{name}.": addresses for name, addresses in known.items()}
        self.asked: list[str] = []
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        [question] = query.question
        name = question.name.to_text().lower()
        self.asked.append(name.rstrip("."))
        if name not in self.known:
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        wanted = [
            address for address in self.known[name] if (":" in address) == (question.rdtype == dns.rdatatype.AAAA)
        ]
        if wanted:
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", question.rdtype, *wanted))
        elif not self.known[name]:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        assert self._transport is not None
        self._transport.sendto(answer.to_wire(), peer)


@contextlib.asynccontextmanager
async def answering(known: Mapping[str, Sequence[str]] | None = None) -> AsyncIterator[Names]:
    transport, names = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Names(known or {}), local_addr=("127.0.0.1", 0)
    )
    try:
        yield names
    finally:
        transport.close()
