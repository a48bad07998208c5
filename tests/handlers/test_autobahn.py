"""The cases of the Autobahn test suite against a server: none fails. A server of stock Tornado is judged beside it.

``python -m pytest -s tests/handlers/test_autobahn.py`` shows how many cases each of the two fails, and how.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from handlers.sockets.socket import SocketHandler
from tests.client import Account
from tests.handlers.autobahn import GROUPS, Case
from tests.handlers.judging import Connect, Connection, Messages, failures, stock
from tests.handlers.websocket import upgraded
from tests.running import Services, place, serving


@contextlib.asynccontextmanager
async def ours(services: Services, monkeypatch: pytest.MonkeyPatch, got: Messages) -> AsyncIterator[Connect]:
    on_message = SocketHandler.on_message

    def received_too(handler: SocketHandler, message: str | bytes) -> Awaitable[None] | None:
        got.append(message)
        return on_message(handler, message)

    monkeypatch.setattr(SocketHandler, "on_message", received_too)
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)

        @contextlib.asynccontextmanager
        async def connect() -> AsyncIterator[Connection]:
            async with upgraded(server, alice) as (reader, writer, _):
                yield reader, writer

        yield connect


@pytest.mark.gen_test(timeout=300)
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
async def test_no_case_fails(
    services: Services, monkeypatch: pytest.MonkeyPatch, group: Callable[[], Iterator[Case]]
) -> None:
    """None of ours. Stock Tornado is judged beside it, more leniently, and shows that the judge is fit to judge."""
    got: Messages = []
    cases = list(group())
    assert len({case.name for case in cases}) == len(cases)
    async with ours(services, monkeypatch, got) as connect:
        mine = await failures(cases, connect, got)
    async with stock(got) as connect:
        theirs = await failures(cases, connect, got, may_drop=True)
    print(f"{group.__name__}: of {len(cases)} cases we fail {len(mine)}, and stock Tornado {len(theirs)}")
    print(*(f"  {name}: {wrong}" for name, wrong in theirs.items()), sep="\n")
    assert mine.keys() - theirs.keys() == set(), "failures beyond those of stock Tornado"
    assert mine == {}
    assert len(theirs) < len(cases) / 2, "a judge by whom Tornado fails in most cases judges nothing"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "offered", ["permessage-deflate", "permessage-deflate; client_max_window_bits; server_no_context_takeover"]
)
async def test_compression_is_declined(services: Services, offered: str) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        async with upgraded(server, alice, f"Sec-WebSocket-Extensions: {offered}") as (_, _, answer):
            assert b"sec-websocket-extensions" not in answer.lower()
