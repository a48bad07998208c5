"""A tab and a phone that is no browser call each other: what one of them sends, the other understands."""

import asyncio

import pytest

from tests.browser.cipher import IdentityCipher
from tests.browser.conftest import StageOf
from tests.browser.tab import Tab, assert_relayed
from tests.e2e.leaks import assert_no_leak
from tests.phones.call import Call
from tests.phones.phone import Phone

PHONE_HUMS = 440  # hertz
CLOSE = 20  # hertz by which the browser's spectrum may be wrong
BEEPS = 5  # loud frames of 20 ms; Chromium's microphone beeps a few times a second and is silent in between
NOTE, REPLY = "a note that only the callee may read", "a reply that only the caller may read"


def test_a_tab_calls_a_phone(stage: StageOf) -> None:
    async def journey() -> None:
        async with (
            stage(1) as set_up,
            set_up.tab("alice_crypto") as tab,
            await Phone.register(set_up.urls[0], "bob_crypto", IdentityCipher()) as phone,
        ):
            await phone.connect()
            await tab.ring("bob_crypto", "udp", NOTE, video=False)
            async with await phone.answer(PHONE_HUMS, REPLY) as call:
                await they_talk(tab, call)
                assert (await tab.note(), call.note) == (REPLY, NOTE)
                await tab.hangup()
                assert (await call.hung_up())["from_user_id"] == tab.user_id
            await tab.confess()
            assert_no_leak([tab, phone], **await set_up.everything_kept())

    asyncio.run(journey())


def test_a_phone_calls_a_tab(stage: StageOf) -> None:
    async def journey() -> None:
        async with (
            stage(1) as set_up,
            set_up.tab("alice_crypto") as tab,
            await Phone.register(set_up.urls[0], "bob_crypto", IdentityCipher()) as phone,
        ):
            await phone.connect()
            async with await phone.call("alice_crypto", PHONE_HUMS, NOTE) as call:
                await tab.answer("udp", REPLY)
                await call.answered()
                await they_talk(tab, call)
                assert (await tab.note(), call.note) == (NOTE, REPLY)
                await call.hangup()
                assert (await tab.hung_up())["from_user_id"] == phone.user_id
            await tab.confess()
            assert_no_leak([tab, phone], **await set_up.everything_kept())

    asyncio.run(journey())


async def they_talk(tab: Tab, call: Call) -> None:
    assert_relayed(await tab.hear(video=False), "udp")
    assert await tab.pitch() == pytest.approx(PHONE_HUMS, abs=CLOSE)
    await call.hear(BEEPS)
    assert call.leg.pair() == ("relay", "relay")
