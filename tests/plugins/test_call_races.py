"""Races in calls: two frames arrive at the same instant on two instances, and all clients agree on the outcome."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.client import Account, Socket, b64
from tests.running import Place, Services, place, serving
from tests.thorough import rounds

PAIRS, ROUNDS = 10, rounds(6, thorough=20)  # pairs race beside each other; so many rounds each
SECONDS = 20.0  # for a frame that must come, on a machine that has other things to do

Frame = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two people who are online on both instances; the first socket of each is on another instance than the other's."""

    alice: Account
    bob: Account
    a: tuple[Socket, Socket]
    b: tuple[Socket, Socket]
    luck: random.Random

    async def at_once(self, *doings: Coroutine[Any, Any, Frame]) -> list[Frame]:
        """Do all of it as nearly at the same time as can be, in any order; the answers in the order of the doings."""
        order = list(enumerate(doings))
        self.luck.shuffle(order)

        async def begin(doing: Coroutine[Any, Any, Frame]) -> Frame:
            await asyncio.sleep(self.luck.choice((0, 0, 0.0005, 0.002)))
            return await doing

        answers = await asyncio.gather(*(begin(doing) for _, doing in order))
        return [answer for _, answer in sorted(zip((number for number, _ in order), answers, strict=True))]

    async def both(self, sockets: tuple[Socket, Socket], kind: str, **fields: Any) -> list[Frame]:
        """What each of the two sockets hears."""
        return [await socket.expect(kind, SECONDS, **fields) for socket in sockets]

    async def ring(self) -> str:
        call_id = str(uuid4())
        assert (await self.a[0].send("call_offer", **self.offer(self.bob, call_id)))["type"] == "ack"
        await self.both(self.b, "call_offer", call_id=call_id)
        return call_id

    async def hang_up(self, call_id: str) -> None:
        """End a call, and expect call_hangup on every socket that receives it."""
        assert (await self.a[0].send("call_hangup", call_id=call_id))["type"] == "ack"
        await self.both(self.b, "call_hangup", call_id=call_id)

    @staticmethod
    def offer(to: Account, call_id: str) -> Frame:
        payload = b64(f"offer of {call_id}".encode())
        return {"call_id": call_id, "to_user_id": to.user_id, "call_type": "audio", "encrypted_payload": payload}


@contextlib.asynccontextmanager
async def pairs(services: Services) -> AsyncIterator[tuple[Place, list[Pair]]]:
    async with contextlib.AsyncExitStack() as stack:
        shared = await stack.enter_async_context(place(services))
        urls = [(await stack.enter_async_context(serving(shared))).url for _ in range(2)]
        people = [await Account(one_time=0).register(urls[0]) for _ in range(2 * PAIRS)]
        made = []
        for number, (alice, bob) in enumerate(zip(people[::2], people[1::2], strict=True)):
            a = [await stack.enter_async_context(alice.socket(url)) for url in urls]
            b = [await stack.enter_async_context(bob.socket(url)) for url in reversed(urls)]
            made.append(Pair(alice, bob, (a[0], a[1]), (b[0], b[1]), random.Random(number)))
        yield shared, made


async def race(services: Services, round_of: Callable[[Pair, Place], Awaitable[str]]) -> dict[str, int]:
    """Run the rounds and count the outcomes. Afterwards no socket has an unexpected frame."""
    outcomes: dict[str, int] = {}
    async with pairs(services) as (shared, made):

        async def compete(pair: Pair) -> None:
            for _ in range(ROUNDS):
                outcome = await round_of(pair, shared)
                outcomes[outcome] = outcomes.get(outcome, 0) + 1

        await asyncio.gather(*map(compete, made))
        await asyncio.sleep(0.5)
        heard = [frame for pair in made for socket in (*pair.a, *pair.b) for frame in socket.frames]
        assert heard == []
    assert sum(outcomes.values()) == PAIRS * ROUNDS
    return outcomes


async def row(shared: Place, call_id: str) -> tuple[str, str | None]:
    connection = await asyncpg.connect(shared.dsn)
    try:
        found = await connection.fetchrow(
            "SELECT status::text, end_reason FROM call_sessions WHERE id = $1", UUID(call_id)
        )
        assert found is not None
        return found["status"], found["end_reason"]
    finally:
        await connection.close()


@pytest.mark.gen_test(timeout=120)
async def test_an_answer_against_a_hangup(services: Services) -> None:
    async def round_of(pair: Pair, shared: Place) -> str:
        call_id = await pair.ring()
        answered, hung_up = await pair.at_once(
            pair.b[0].send("call_answer", call_id=call_id, encrypted_payload=b64(call_id.encode())),
            pair.a[0].send("call_hangup", call_id=call_id),
        )
        # Whichever came first, the caller's hangup ends the call, and all but the caller's own socket hear why.
        assert hung_up["type"] == "ack"
        reason = hung_up["end_reason"]
        for socket in (pair.a[1], *pair.b):
            assert (await socket.expect("call_hangup", SECONDS, call_id=call_id, reason=reason))["reason"] == reason
        if answered["type"] == "ack":
            assert (hung_up["status"], reason) == ("ended", "hangup")
            await pair.both(pair.a, "call_answer", call_id=call_id)
            await pair.b[1].expect("call_hangup", SECONDS, call_id=call_id, reason="answered_elsewhere")
        else:
            assert (answered["code"], answered["status"]) == ("invalid_state", "missed")
            assert (hung_up["status"], reason) == ("missed", "cancelled")
        assert await row(shared, call_id) == (hung_up["status"], reason)
        return str(reason)

    assert len(await race(services, round_of)) == 2, "one of the two always won, so this was no race"


@pytest.mark.gen_test(timeout=120)
async def test_two_answers(services: Services) -> None:
    async def round_of(pair: Pair, shared: Place) -> str:
        call_id = await pair.ring()
        payloads = [b64(f"{device} {call_id}".encode()) for device in ("tablet", "phone")]
        answers = await pair.at_once(
            *(
                socket.send("call_answer", call_id=call_id, encrypted_payload=payload)
                for socket, payload in zip(pair.b, payloads, strict=True)
            )
        )
        [winner] = [number for number, answer in enumerate(answers) if answer["type"] == "ack"]
        loser = 1 - winner
        assert answers[loser]["code"] == "invalid_state"
        assert (await row(shared, call_id)) == ("accepted", None)
        for heard in await pair.both(pair.a, "call_answer", call_id=call_id):
            assert heard["encrypted_payload"] == payloads[winner]
        await pair.b[loser].expect("call_hangup", SECONDS, call_id=call_id, reason="answered_elsewhere")
        await pair.hang_up(call_id)
        await pair.a[1].expect("call_hangup", SECONDS, call_id=call_id)
        return f"device {winner}"

    assert len(await race(services, round_of)) == 2, "one of the two always won, so this was no race"


@pytest.mark.gen_test(timeout=120)
async def test_glare(services: Services) -> None:
    async def round_of(pair: Pair, shared: Place) -> str:
        ids = [str(uuid4()), str(uuid4())]
        offers = await pair.at_once(
            pair.a[0].send("call_offer", **pair.offer(pair.bob, ids[0])),
            pair.b[0].send("call_offer", **pair.offer(pair.alice, ids[1])),
        )
        [winner] = [number for number, answer in enumerate(offers) if answer["type"] == "ack"]
        loser = 1 - winner
        assert (offers[loser]["code"], offers[loser]["call_id"]) == ("glare", ids[winner])
        await pair.both((pair.b, pair.a)[winner], "call_offer", call_id=ids[winner])
        assert await live(shared, pair) == [ids[winner]]
        # The loser answers the call that won.
        caller, callee = ((pair.a, pair.b), (pair.b, pair.a))[winner]
        payload = b64(ids[winner].encode())
        answer = await callee[0].send("call_answer", call_id=ids[winner], encrypted_payload=payload)
        assert answer["type"] == "ack"
        await pair.both(caller, "call_answer", call_id=ids[winner])
        await callee[1].expect("call_hangup", SECONDS, reason="answered_elsewhere")
        await pair.hang_up(ids[winner])
        await pair.a[1].expect("call_hangup", SECONDS, call_id=ids[winner])
        return ("alice", "bob")[winner]

    assert len(await race(services, round_of)) == 2, "one of the two always won, so this was no race"


@pytest.mark.gen_test(timeout=120)
async def test_the_same_offer_from_two_sockets(services: Services) -> None:
    async def round_of(pair: Pair, shared: Place) -> str:
        call_id = str(uuid4())
        offers = await pair.at_once(
            *(socket.send("call_offer", **pair.offer(pair.bob, call_id)) for socket in (*pair.a, *pair.a))
        )
        assert [offer["type"] for offer in offers] == ["ack"] * 4
        assert {offer["expires_at"] for offer in offers} == {offers[0]["expires_at"]}
        [first] = [number for number, offer in enumerate(offers) if "repeated" not in offer]
        await pair.both(pair.b, "call_offer", call_id=call_id)
        assert await live(shared, pair) == [call_id]
        await pair.hang_up(call_id)
        await pair.a[1].expect("call_hangup", SECONDS, call_id=call_id)
        return f"socket {first % 2}"

    assert len(await race(services, round_of)) == 2, "one of the two always won, so this was no race"


@pytest.mark.gen_test(timeout=120)
async def test_two_new_offers_of_one_caller(services: Services) -> None:
    async def round_of(pair: Pair, shared: Place) -> str:
        ids = [str(uuid4()), str(uuid4())]
        offers = await pair.at_once(
            *(
                socket.send("call_offer", **pair.offer(pair.bob, call_id))
                for socket, call_id in zip(pair.a, ids, strict=True)
            )
        )
        assert [offer["type"] for offer in offers] == ["ack", "ack"]
        [left] = await live(shared, pair)
        gone = ids[1 - ids.index(left)]
        assert await row(shared, gone) == ("ended", "superseded")
        for socket in pair.b:
            await socket.expect("call_offer", SECONDS, call_id=left)
            await superseded(socket, gone)
        # The caller's other device hears that its call is over; the one that superseded it knows.
        await pair.a[ids.index(gone)].expect("call_hangup", SECONDS, call_id=gone, reason="superseded")
        await pair.hang_up(left)
        await pair.a[1].expect("call_hangup", SECONDS, call_id=left)
        return f"device {ids.index(left)}"

    assert len(await race(services, round_of)) == 2, "one of the two always won, so this was no race"


async def superseded(socket: Socket, call_id: str) -> None:
    """The socket hears that the call is over, and doesn't hear it ring afterwards."""

    def of_it(kind: str) -> list[int]:
        return [n for n, frame in enumerate(socket.frames) if (frame["type"], frame.get("call_id")) == (kind, call_id)]

    async with asyncio.timeout(SECONDS):
        while not of_it("call_hangup"):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    [over] = of_it("call_hangup")
    rang = of_it("call_offer")
    assert all(number < over for number in rang), "it rings after it is over"
    for number in sorted([over, *rang], reverse=True):
        del socket.frames[number]


async def live(shared: Place, pair: Pair) -> list[str]:
    """The calls of the pair that are not over."""
    connection = await asyncpg.connect(shared.dsn)
    try:
        rows = await connection.fetch(
            "SELECT id FROM call_sessions WHERE caller_id = ANY ($1::uuid[]) AND status IN ('ringing', 'accepted')",
            [UUID(pair.alice.user_id), UUID(pair.bob.user_id)],
        )
        return [str(row["id"]) for row in rows]
    finally:
        await connection.close()
