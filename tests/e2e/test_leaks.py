"""The search for leaks finds what it is meant to find."""

import asyncio
import base64

import pytest
from redis.asyncio import Redis

from tests.e2e.leaks import assert_no_leak, cache_text
from tests.phones.phone import Phone
from tests.phones.signal_protocol import b64
from tests.phones.signal_python import SignalPython
from tests.running import Services, place

SECRET = "candidate:1 1 udp 2130706431 127.0.0.1 61234 typ relay"
LOG = '{"event":"started","level":"info"}'
PAYLOAD = b64(b"the ciphertext of a call")


@pytest.mark.parametrize(
    "trace",
    [
        SECRET,
        f'{{"sdp": "v=0\\r\\n{SECRET}"}}',
        f"\\x{SECRET.encode().hex()}",
        *(base64.b64encode(b"x" * place + SECRET.encode() + b"more").decode() for place in range(3)),
        PAYLOAD,
        f"\\x{base64.b64decode(PAYLOAD).hex()}",
    ],
)
def test_every_form_of_a_secret_is_found(trace: str) -> None:
    async def look() -> None:
        async with Phone("http://127.0.0.1", "alice", "password of alice", SignalPython()) as phone:
            phone.said |= {SECRET, *(f"another line, number {n}" for n in range(20))}
            phone.signalled.append(PAYLOAD)
            assert_no_leak([phone], database="rows", cache="keys", log=LOG)
            for place in ("database", "cache", "log"):
                places = {"database": "", "cache": "", "log": LOG}
                places[place] += trace
                with pytest.raises(AssertionError, match=f"the {place} holds"):
                    assert_no_leak([phone], **places)

    asyncio.run(look())


def test_every_kind_of_key_is_read(services: Services) -> None:
    async def look() -> None:
        async with place(services) as shared, Redis.from_url(shared.redis) as redis:
            await redis.set("string", "in a string")
            await redis.hset("hash", "field", "in a hash")
            await redis.rpush("list", "in a list")
            await redis.sadd("set", "in a set")
            await redis.zadd("zset", {"in a zset": 1})
            await redis.xadd("stream", {"field": "in a stream"})
            text = await cache_text(shared.redis)
            for kind in ("string", "hash", "list", "set", "zset", "stream"):
                assert f"in a {kind}" in text
                assert f"in a {kind}".encode().hex() in text

    asyncio.run(look())
