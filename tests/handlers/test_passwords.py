"""Passwords: more requests than the queue can hold."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis

from handlers import passwords as passwords_module
from handlers.limits.rates import Limits
from handlers.passwords import Passwords
from handlers.wire.errors import Unavailable


@pytest.mark.gen_test
async def test_a_rejection_is_delayed_against_immediate_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords_module, "MAX_QUEUED", 1)
    monkeypatch.setattr(passwords_module, "REJECT_AFTER", 0.3)
    monkeypatch.setattr(passwords_module, "MAX_REJECTIONS", 1)
    async with Redis() as redis:
        passwords = Passwords(Limits(redis, on=False))
        try:
            passwords._free = 0  # both threads are busy
            waiting = asyncio.create_task(passwords.hash("correct horse"))
            await asyncio.sleep(0)
            began = time.monotonic()
            refused = [asyncio.create_task(passwords.hash("battery staple")) for _ in range(2)]
            done, _ = await asyncio.wait(refused, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == 1, "only so many refusals wait"
            for task in refused:
                with pytest.raises(Unavailable):
                    await task
            assert time.monotonic() - began >= 0.3
            passwords._release_thread()
            assert (await waiting).startswith("$argon2id$")
        finally:
            passwords.close()
