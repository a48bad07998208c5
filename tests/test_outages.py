"""Redis that dies or freezes, and an instance that dies in a call: others notice little, and all is soon well."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from config import embedded
from config.embedded.child import Child
from tests.client import Account, Socket, b64
from tests.plugins.chatting import chat, say
from tests.plugins.pushing import registered
from tests.providers.providers import providers
from tests.running import Place, Services, place, program, serving
from tests.waiting import SLACK, WAIT

CALLS = 10  # between two instances, and as many between users of the first
FROZEN = float(os.environ.get("MIMU_TEST_FREEZE", "6"))  # seconds that Redis is away; longer than anybody's patience
BACK = 3.0 + SLACK  # seconds in which all must be well again
SOON = 1.0  # seconds that nine of ten candidates between users of one instance may take; none waits for Redis


@dataclass
class Call:
    """An answered call. Candidates are numbered, so that a lost or a doubled one is known."""

    call_id: str
    caller: Socket
    callee: Socket
    sent: int = 0

    async def say(self, to: Socket, by: Socket) -> str:
        """Send a candidate, which is acked; what it says."""
        self.sent += 1
        payload = b64(f"{self.call_id} {self.sent}".encode())
        ack = await by.send("ice_candidate", call_id=self.call_id, encrypted_payload=payload)
        assert ack["type"] == "ack", ack
        return payload

    async def heard_both_ways(self, seconds: float) -> bool:
        """True if each side hears the other within so many seconds."""
        said = [
            (self.callee, await self.say(self.callee, self.caller)),
            (self.caller, await self.say(self.caller, self.callee)),
        ]
        try:
            for socket, payload in said:
                await socket.expect("ice_candidate", seconds, encrypted_payload=payload)
        except AssertionError:
            return False
        return True


async def talking(alice: Account, bob: Account, a: Socket, b: Socket) -> Call:
    call_id = str(uuid4())
    offer = {"call_id": call_id, "to_user_id": bob.user_id, "encrypted_payload": b64(b"offer")}
    assert (await a.send("call_offer", **offer, call_type="audio"))["delivered"] is True
    await b.expect("call_offer")
    assert (await b.send("call_answer", call_id=call_id, encrypted_payload=b64(b"answer")))["type"] == "ack"
    await a.expect("call_answer")
    return Call(call_id, a, b)


@contextlib.asynccontextmanager
async def on_two_instances(shared: Place) -> AsyncIterator[tuple[list[Call], list[Call], Newcomers]]:
    """Calls within one instance, calls between it and another, and two who will come later, one on each."""
    async with contextlib.AsyncExitStack() as stack:
        urls = [(await stack.enter_async_context(serving(shared))).url for _ in range(2)]

        async def call(url: str) -> Call:
            alice, bob = [await Account(one_time=0).register(urls[0]) for _ in range(2)]
            a, b = [await stack.enter_async_context(who.socket(at)) for who, at in ((alice, urls[0]), (bob, url))]
            return await talking(alice, bob, a, b)

        later = [await Account(one_time=0).register(url) for url in urls]
        within, between = [[await call(url) for _ in range(CALLS)] for url in urls]
        yield within, between, Newcomers(later[0], later[1], stack)


@dataclass
class Newcomers:
    """Two who open their sockets while Redis is away, each on both instances."""

    alice: Account
    bob: Account
    stack: contextlib.AsyncExitStack

    async def come(self) -> None:
        urls = (self.alice.url, self.bob.url)
        self.a, self.desk, self.tablet, self.b = [
            await self.stack.enter_async_context(who.socket(url)) for who in (self.alice, self.bob) for url in urls
        ]

    async def talk(self) -> Call:
        call = await talking(self.alice, self.bob, self.a, self.b)
        await self.tablet.expect("call_hangup", call_id=call.call_id, reason="answered_elsewhere")
        await self.desk.expect("call_answer", call_id=call.call_id)
        return call


async def goes_on(calls: list[Call], until: Callable[[], bool]) -> float:
    """Talk within the instance until then; what nine of ten candidates took at most."""
    took = []
    while not until():
        for call in calls:
            started = time.monotonic()
            assert await call.heard_both_ways(WAIT)
            took.append(time.monotonic() - started)
        await asyncio.sleep(0.1)
    assert max(took) < FROZEN, "one of them waited for Redis"
    return sorted(took)[len(took) * 9 // 10]


async def is_well(calls: list[Call]) -> float:
    """Seconds until every call between the instances is heard both ways."""
    started = time.monotonic()
    waiting = list(calls)
    while waiting:
        heard = await asyncio.gather(*(call.heard_both_ways(1) for call in waiting))
        waiting = [call for call, well in zip(waiting, heard, strict=True) if not well]
        assert time.monotonic() - started < 30, f"{len(waiting)} of {len(calls)} calls hear nothing"
    return time.monotonic() - started


async def once(calls: list[Call]) -> None:
    """From now on all is heard, and each once."""
    said: list[str] = []
    for call in calls:
        for _ in range(3):
            said += [await call.say(call.callee, call.caller), await call.say(call.caller, call.callee)]

    def heard() -> Counter[str]:
        sockets = [socket for call in calls for socket in (call.caller, call.callee)]
        frames = [frame for socket in sockets for frame in socket.frames]
        return Counter(frame["encrypted_payload"] for frame in frames if frame["type"] == "ice_candidate")

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WAIT):
            while set(said) - set(heard()):
                await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)  # what comes twice comes soon
    assert [payload for payload in said if heard()[payload] != 1] == []
    assert max(heard().values()) == 1, "something came twice"


def valkey(folder: Path) -> int:
    """The process of the Valkey in that folder."""
    [found] = [
        process.pid
        for process in psutil.Process().children(recursive=True)
        if any(str(folder) in part for part in process.cmdline()) and "valkey" in process.name()
    ]
    return found


@pytest.mark.gen_test(timeout=120)
async def test_a_redis_that_freezes(services: Services, folder: Path) -> None:
    async with (
        place(services) as shared,
        embedded.valkey(folder) as redis,
        on_two_instances(replace(shared, redis=redis)) as (within, between, newcomers),
    ):
        assert await is_well(between) < BACK
        process = valkey(folder)
        os.kill(process, signal.SIGSTOP)
        try:
            thaw = time.monotonic() + FROZEN
            await newcomers.come()
            assert await goes_on(within, lambda: time.monotonic() > thaw) < SOON
        finally:
            os.kill(process, signal.SIGCONT)
        assert await is_well(between) < BACK
        await once([*within, *between, await newcomers.talk()])


@pytest.mark.gen_test(timeout=120)
async def test_messages_sent_while_redis_is_frozen_are_pushed_when_it_is_back(
    services: Services, folder: Path, tmp_path: Path
) -> None:
    async with (
        place(services) as shared,
        embedded.valkey(folder) as redis,
        providers(tmp_path) as world,
        serving(replace(shared, redis=redis), **world.settings) as running,
    ):
        alice, bob = [await Account(one_time=0).register(running.url) for _ in range(2)]
        await registered(bob, "fcm")
        group = await chat(alice, bob)
        async with alice.socket() as socket:
            process = valkey(folder)
            os.kill(process, signal.SIGSTOP)
            try:
                took = []
                for _ in range(5):
                    started = time.monotonic()
                    await say(alice, group)
                    await socket.expect("message_new")
                    took.append(time.monotonic() - started)
                assert sorted(took)[2] < SOON, "messages wait for no push"
                body = {"call_id": str(uuid4()), "to_user_id": bob.user_id, "encrypted_payload": b64(b"offer")}
                assert (await socket.send("call_offer", **body))["type"] == "ack"
                await asyncio.sleep(FROZEN)
            finally:
                os.kill(process, signal.SIGCONT)
            await world.google.expect("call_offer", call_id=body["call_id"])
            await world.google.expect("message_new", chat_id=group["id"])


@pytest.mark.gen_test(timeout=120)
async def test_a_redis_that_is_killed(services: Services, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        place(services) as shared,
        embedded.valkey(folder) as redis,
        on_two_instances(replace(shared, redis=redis)) as (within, between, newcomers),
    ):
        assert await is_well(between) < BACK
        start, back = Child._start, asyncio.Event()

        async def much_later(child: Child, port: int) -> None:
            await asyncio.sleep(FROZEN)
            await start(child, port)
            back.set()

        monkeypatch.setattr(Child, "_start", much_later)
        os.kill(valkey(folder), signal.SIGKILL)
        await newcomers.come()
        assert await goes_on(within, back.is_set) < SOON
        assert await is_well(between) < BACK
        await once([*within, *between, await newcomers.talk()])


@pytest.mark.gen_test(timeout=60)
async def test_an_instance_that_is_killed_in_a_call(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared, serving(shared) as stays, program(shared, tmp_path) as dies:
        alice, bob = await Account().register(stays.url), await Account().register(stays.url)
        async with alice.socket() as a, contextlib.AsyncExitStack() as lost:
            call = await talking(alice, bob, a, await lost.enter_async_context(bob.socket(dies.url)))
            dies.kill()
            await call.callee.expect("closed")
            # Bob's phone comes back on the other instance, where the call is still his.
            async with bob.socket() as b:
                assert await replace(call, callee=b).heard_both_ways(WAIT)
                assert (await a.send("call_hangup", call_id=call.call_id))["status"] == "ended"
                assert (await b.expect("call_hangup"))["reason"] == "hangup"
                again = await talking(alice, bob, a, b)
                assert await again.heard_both_ways(WAIT)


@pytest.mark.gen_test(timeout=60)
async def test_users_of_a_killed_instance_are_called_again_without_a_hangup(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared, serving(shared) as stays, program(shared, tmp_path) as dies:
        alice, bob = await Account().register(stays.url), await Account().register(stays.url)
        async with bob.socket() as b, contextlib.AsyncExitStack() as lost:
            a = await lost.enter_async_context(alice.socket(dies.url))
            old = await talking(alice, bob, a, b)
            dies.kill()
            async with alice.socket() as back:
                await talking(alice, bob, back, b)
                assert (await b.expect("call_hangup", call_id=old.call_id))["reason"] == "superseded"
