"""Shares: a busy account waits and loses nothing, others are served, honest clients hardly wait."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from tornado.httpclient import HTTPClientError

from config.settings import Budgets
from handlers.limits import ledger
from handlers.limits import share as share_module
from handlers.limits.ledger import Account as Spender
from handlers.limits.share import (
    BURST_SECONDS,
    HELD_SECONDS,
    MAX_AT_WORK,
    MAX_REQUEST_SECONDS,
    MAX_WAITING,
    SECONDS_PER_BYTE,
    SECONDS_PER_SOCKET,
    WAIT_TIMEOUT,
    Share,
    WaitTotals,
)
from handlers.sockets.rfc6455 import FRAME_COST, TURN
from handlers.wire.costs import READS
from handlers.wire.errors import RateLimited
from tests.client import Account
from tests.handlers.test_ledger import Clock, alone
from tests.running import Services, place, serving
from tests.waiting import WAIT

ON = {"RATE_LIMITS": "on", "RATE_LIMIT_REGISTER": "1000/hour"}
RATE = 0.2


def message(size: int) -> dict[str, object]:
    return {"client_id": str(uuid4()), "encrypted_payload": "QUJD" * (size // 3), "message_type": "text"}


# One share ------------------------------------------------------------------------------------------------------------


def test_an_account_is_ahead_when_its_burst_is_used_up_and_catches_up_at_its_rate() -> None:
    clock = Clock()
    share = Share(RATE, MAX_AT_WORK, clock)
    share.add_work(BURST_SECONDS)
    assert share.ahead == pytest.approx(0, abs=1e-6)
    share.add_work(0.1)
    assert share.ahead == pytest.approx(0.1 / RATE)
    assert not share.begin()
    clock.now += 0.1 / RATE + 0.001
    assert share.is_free
    assert share.begin()


def test_few_requests_of_an_account_are_at_work_at_once() -> None:
    clock = Clock()
    share = Share(RATE, MAX_AT_WORK, clock)
    begun = [share.begin() for _ in range(MAX_AT_WORK)]
    assert all(begun)
    assert not share.begin()
    share.end(begun[0])
    assert share.begin()


def test_a_request_that_waits_for_something_else_keeps_no_place() -> None:
    clock = Clock()
    share = Share(RATE, MAX_AT_WORK, clock)
    slow = [share.begin() for _ in range(MAX_AT_WORK)]
    clock.now += HELD_SECONDS + 0.01
    assert share.begin()
    for began in slow:
        share.end(began)
    assert share.ahead < MAX_AT_WORK * MAX_REQUEST_SECONDS / RATE - BURST_SECONDS / RATE + 1e-6, (
        "what it waited for is not charged"
    )
    before = share.ahead
    share.end(share.begin(), most=0.1)
    assert share.ahead == before, "nor more than it took"
    assert not any(share.is_at_work(began) for began in slow)
    assert [bool(share.begin()) for _ in range(2)] == [True, False], "a place is given back once"


@pytest.mark.gen_test
async def test_queued_requests_begin_in_order_and_are_not_overtaken() -> None:
    share = Share(1.0, 1, time.monotonic)
    began = share.begin()
    order: list[int] = []

    async def request(number: int) -> None:
        mine = share.begin() or await share.begin_in_turn()
        order.append(number)
        share.end(mine)

    waiting = [asyncio.create_task(request(number)) for number in range(5)]
    await asyncio.sleep(0.02)
    assert order == []
    assert not share.begin()
    share.end(began)
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.gen_test
async def test_a_request_is_refused_at_once_when_the_queue_is_full() -> None:
    share = Share(RATE, 1, time.monotonic)
    assert share.begin()
    waiting = [asyncio.create_task(share.begin_in_turn()) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await share.begin_in_turn()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    share.add_work(BURST_SECONDS + WAIT_TIMEOUT)
    with pytest.raises(RateLimited) as refused:
        await share.begin_in_turn()
    assert int(refused.value.headers["Retry-After"]) >= WAIT_TIMEOUT


@pytest.mark.gen_test
async def test_a_queued_request_is_refused_after_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_module, "WAIT_TIMEOUT", 0.05)
    share = Share(RATE, 1, time.monotonic)
    assert share.begin()
    with pytest.raises(RateLimited):
        await share.begin_in_turn()
    assert not share._queued


@pytest.mark.gen_test
async def test_waits_are_counted_over_all_accounts() -> None:
    waits = WaitTotals()
    for _ in range(2):
        share = Share(1.0, 1, time.monotonic, waits)
        share.add_work(BURST_SECONDS)
        await share.catch_up()
        share.add_work(0.2)
        await share.catch_up()
    assert waits.count == 2
    assert 0.2 < waits.seconds <= 0.4


@pytest.mark.gen_test
async def test_an_account_that_is_ahead_is_not_forgotten() -> None:
    books, clock = alone(Budgets())
    user = UUID(int=1)
    books.account(user).spend_request(READS)
    books.account(user).share.add_work(BURST_SECONDS)
    clock.now += 0.1
    await books.settle(all_=True)
    await books.settle(all_=True)
    gc.collect()
    assert books.account(user).share.ahead > -BURST_SECONDS / RATE
    clock.now += 10
    await books.settle(all_=True)
    assert len(books) == 0


# What honest clients wait, at the default share -----------------------------------------------------------------------


def request(account: Spender, sent: int) -> None:
    account.share.add_work(MAX_REQUEST_SECONDS + sent * SECONDS_PER_BYTE)


def a_phone_that_sends_500_messages(account: Spender) -> Iterator[None]:
    for _ in range(500):
        account.share.add_work((FRAME_COST + 2000) * SECONDS_PER_BYTE)
        account._ledger.fan_out(UUID(int=1), 2, 2000)
        yield


def a_phone_that_syncs_10_000_events(account: Spender) -> Iterator[None]:
    for _ in range(50):  # pages of 200
        request(account, 200 * 1200)
        yield


def a_phone_that_uploads_100_mb(account: Spender) -> Iterator[None]:
    request(account, 500)
    yield  # the bytes of a file are limited separately


def an_app_that_is_opened(account: Spender) -> Iterator[None]:
    account.share.add_work(SECONDS_PER_SOCKET)
    for _ in range(8):
        request(account, 10_000)
        yield


@pytest.mark.parametrize(
    ("client", "seconds"),
    [
        (a_phone_that_sends_500_messages, 0.5),
        (a_phone_that_syncs_10_000_events, 4),
        (a_phone_that_uploads_100_mb, 0),
        (an_app_that_is_opened, 0.1),
    ],
)
def test_an_honest_client_waits_little(client: object, seconds: float) -> None:
    assert callable(client)
    books, clock = alone(Budgets())
    account, waited = books.account(UUID(int=1)), 0.0
    for _ in client(account):
        ahead = account.share.ahead
        if ahead > 0:
            waited += ahead
            clock.now += ahead
        assert ahead < WAIT_TIMEOUT, "a client that waits for each answer is not refused"
    assert waited <= seconds


# On a server ----------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_user_opens_sockets_at_a_rate_and_others_behind_the_address_do_not_notice(services: Services) -> None:
    limited = {**ON, "RATE_LIMIT_SOCKETS": "3/10 minutes"}
    async with place(services) as shared, serving(shared, **limited) as one, serving(shared, **limited) as two:
        alice, bob = await Account().register(one.url), await Account().register(one.url)
        for url in (one.url, two.url, one.url):
            async with alice.socket(url):
                pass
        with pytest.raises(HTTPClientError) as refused:
            async with alice.socket():
                pass
        assert refused.value.code == 429
        assert refused.value.response is not None
        assert 190 <= int(refused.value.response.headers["Retry-After"]) <= 200
        async with bob.socket():
            pass


@pytest.mark.gen_test
async def test_frames_of_all_sockets_of_an_account_share_its_time(services: Services) -> None:
    async with place(services) as shared, serving(shared, ACCOUNT_SHARE="0.02", **ON) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        frames = 3 * TURN // FRAME_COST  # 3 ms of work each
        async with alice.socket() as one, alice.socket() as two, bob.socket() as other:
            server.app.ledger.account(UUID(alice.user_id)).share.add_work(BURST_SECONDS)  # its sockets hold it
            began = time.monotonic()
            for socket in (one, two):
                for number in range(frames):
                    await socket.raw(json.dumps({"type": "nope", "id": str(number)}))
            await other.raw(json.dumps({"type": "nope", "id": "mine"}))
            assert (await other.expect("error"))["id"] == "mine"
            for socket in (one, two):
                answers = [await socket.expect("error") for _ in range(frames)]
                assert [answer["id"] for answer in answers] == [str(number) for number in range(frames)]
                assert {answer["code"] for answer in answers} == {"invalid_request"}
            assert time.monotonic() - began > 3 * TURN * SECONDS_PER_BYTE / 0.02, (
                "one of them had to wait for the other"
            )


@pytest.mark.gen_test
async def test_large_messages_to_many_come_one_after_the_other(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve of them at once exceed the queue of a reader, whichever sockets send them."""
    monkeypatch.setattr(ledger, "SECONDS_PER_RECIPIENT", 0.05)  # three people are as many as 75,000
    async with place(services) as shared, serving(shared, ACCOUNT_SHARE="1", **ON) as server:
        people = [await Account(one_time=0).register(server.url) for _ in range(3)]
        alice, bob, carol = people
        body = {"type": "group", "title": "All", "participants": [bob.public_id, carol.public_id]}
        chat = (await alice.post("/chats", body)).json["id"]
        async with alice.socket() as one, alice.socket() as two, bob.socket() as reader:
            began = time.monotonic()
            for number in range(3):
                for socket in (one, two):
                    frame = {"type": "message_send", "id": f"{number}", "chat_id": chat, **message(65_536)}
                    await socket.raw(json.dumps(frame))
            seen = [(await reader.expect("message_new"))["seq"] for _ in range(6)]
            assert seen == sorted(seen)
            assert time.monotonic() - began > 5 * 0.15 - BURST_SECONDS, "each waits for the work of those before it"
            for socket in (one, two):
                acks = [await socket.expect("ack") for _ in range(3)]
                assert [ack["id"] for ack in acks] == [str(number) for number in range(3)]


@pytest.mark.gen_test
async def test_requests_of_an_account_that_is_ahead_wait_and_are_answered(services: Services) -> None:
    async with place(services) as shared, serving(shared, **ON) as server:
        alice, bob = await Account().register(server.url), await Account().register(server.url)
        account = server.app.ledger.account(UUID(alice.user_id))
        share = account.share
        share.add_work(BURST_SECONDS + 1.5 * RATE - max(share.ahead, 0) * RATE)
        began = time.monotonic()
        late = asyncio.create_task(alice.get("/users/me"))
        assert (await bob.get("/users/me")).status == 200
        assert not late.done()
        assert (await late).status == 200
        assert time.monotonic() - began > 1
        share.add_work(BURST_SECONDS + (WAIT_TIMEOUT + 5) * RATE)
        answer = await alice.get("/users/me")
        assert (answer.status, answer.json["error"]) == (429, "rate_limited")
        assert int(answer.headers["Retry-After"]) >= 5


@pytest.mark.gen_test
async def test_a_client_that_goes_while_it_waits_takes_no_turn(services: Services) -> None:
    async with place(services) as shared, serving(shared, **ON) as server:
        alice = await Account().register(server.url)
        account = server.app.ledger.account(UUID(alice.user_id))
        account.share.add_work(BURST_SECONDS + 1.5 * RATE)  # a second and a half
        _, _, address = server.url.partition("//")
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /users/me HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {alice.token}\r\n\r\n".encode())
        async with asyncio.timeout(WAIT):
            while not account.share._queued:
                await asyncio.sleep(0.01)
        writer.close()
        async with asyncio.timeout(WAIT):
            while account.share._queued:
                await asyncio.sleep(0.01)
        assert not account.share._begun
        assert account.share.ahead > 0
        assert (await alice.get("/users/me")).status == 200
        assert reader.at_eof() or not await reader.read()
