"""Two tabs call each other: the relay is reached in every way a browser has, and the server saw nothing of the call."""

import asyncio

import pytest

from tests.browser.conftest import StageOf
from tests.browser.tab import Tab, assert_relayed
from tests.e2e.leaks import assert_no_leak

NOTE, REPLY = "a note that only the callee may read", "a reply that only the caller may read"


@pytest.mark.parametrize("over", ["udp", "tcp", "tls"])
def test_two_tabs_call_each_other(stage: StageOf, over: str) -> None:
    async def journey() -> None:
        async with stage(1) as set_up, set_up.tab("alice_crypto") as alice, set_up.tab("bob_crypto") as bob:
            await they_talk(alice, bob, over)
            await one_hangs_up(alice, bob)
            for tab in (alice, bob):
                await the_history_is_right(tab)
                await tab.confess()
            assert_no_leak([alice, bob], **await set_up.everything_kept())

    asyncio.run(journey())


def test_two_tabs_on_two_servers(stage: StageOf) -> None:
    async def journey() -> None:
        async with stage(2) as set_up, set_up.tab("alice_crypto") as alice, set_up.tab("bob_crypto", 1) as bob:
            await they_talk(alice, bob, "udp")
            await one_hangs_up(bob, alice)
            for tab in (alice, bob):
                await the_history_is_right(tab)
                await tab.confess()
            assert_no_leak([alice, bob], **await set_up.everything_kept())

    asyncio.run(journey())


async def they_talk(caller: Tab, callee: Tab, over: str) -> None:
    """Both hear and see the other, through the relay, which both reach over the same transport."""
    assert (await caller.ring(callee.public_id, over, NOTE))["delivered"] is True
    assert (await callee.answer(over, REPLY))["status"] == "accepted"
    for report in await asyncio.gather(caller.hear(), callee.hear()):
        assert_relayed(report, over)
        assert min(report["picture"]) > 0
    assert (await callee.note(), await caller.note()) == (NOTE, REPLY)
    for tab in (caller, callee):
        await tab.heartbeat()


async def one_hangs_up(tab: Tab, other: Tab) -> None:
    await tab.hangup()
    hangup = await other.hung_up()
    assert (hangup["from_user_id"], hangup["reason"]) == (tab.user_id, "hangup")


async def the_history_is_right(tab: Tab) -> None:
    [row] = await tab.get("/calls")
    assert (row["call_type"], row["status"], row["end_reason"]) == ("video", "ended", "hangup")
    assert row["started_at"] <= row["accepted_at"] <= row["last_heartbeat"] <= row["ended_at"]
