"""The cases of the Autobahn test suite against a server: none fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

import pytest

from handlers.sockets.rfc6455 import CLOSE, PONG, TEXT
from handlers.sockets.socket import SocketHandler
from tests.client import Account
from tests.handlers.autobahn import GROUPS, NORMAL, Case, close
from tests.handlers.websocket import received, upgraded
from tests.running import Services, place, serving


async def fault(case: Case, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, got: list[str | bytes]) -> str:
    """What is wrong with the server's side of a case; nothing if all is well."""
    with contextlib.suppress(ConnectionError):  # it may end before it has all of what it refuses
        for piece in case.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
    answers, pongs = 0, []
    closing = not case.codes
    while True:
        if closing and answers == len(case.messages) and len(pongs) == len(case.pongs):
            closing = False
            writer.write(close(NORMAL))
        opcode, payload = await received(reader)
        if opcode == CLOSE:
            break
        if opcode == TEXT:
            answers += 1
        elif opcode == PONG:
            pongs.append(payload)
    code = int.from_bytes(payload[:2])
    if got != list(case.messages):
        return f"received {[(type(message).__name__, len(message)) for message in got]}"
    if pongs != list(case.pongs):
        return f"answered with the pongs {pongs}"
    if code not in (case.codes or [NORMAL]):
        return f"closed with {code}"
    if await reader.read():
        return "sent something after its Close frame"
    return ""


@pytest.mark.gen_test(timeout=120)
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
async def test_no_case_fails(
    services: Services, monkeypatch: pytest.MonkeyPatch, group: Callable[[], Iterator[Case]]
) -> None:
    got: list[str | bytes] = []
    on_message = SocketHandler.on_message

    def received_too(handler: SocketHandler, message: str | bytes) -> Awaitable[None] | None:
        got.append(message)
        return on_message(handler, message)

    monkeypatch.setattr(SocketHandler, "on_message", received_too)
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        faults, names = {}, []
        for case in group():
            got.clear()
            async with upgraded(server, alice) as (reader, writer, _):
                try:
                    wrong = await fault(case, reader, writer, got)
                except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
                    wrong = f"ended with {type(error).__name__}"
            names.append(case.name)
            if wrong:
                faults[case.name] = wrong
        assert faults == {}
        assert len(set(names)) == len(names)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "offered", ["permessage-deflate", "permessage-deflate; client_max_window_bits; server_no_context_takeover"]
)
async def test_compression_is_declined(services: Services, offered: str) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        async with upgraded(server, alice, f"Sec-WebSocket-Extensions: {offered}") as (_, _, answer):
            assert b"sec-websocket-extensions" not in answer.lower()
