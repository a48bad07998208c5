"""Rate limits: the arithmetic, the client addresses, and Redis that is down."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from config.values import Rate
from handlers.limits.rates import Limits, client_address, limit_key, within
from handlers.wire.errors import RateLimited
from tests.running import Services, place
from tests.waiting import WAIT

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.1", None, "203.0.113.1"),
        ("203.0.113.1", "198.51.100.1", "203.0.113.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.2.3.4, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.2.3.4, 198.51.100.1, 10.9.9.9", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, rubbish", "10.0.0.1"),
        ("10.0.0.1", "10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("2001:db8::5", "2001:470::1", "2001:470::1"),
        # Some proxies write the port of the connection beside the address.
        ("10.0.0.1", "198.51.100.1:51234", "198.51.100.1"),
        ("10.0.0.1", "[2001:470::1]:443", "2001:470::1"),
        ("10.0.0.1", "[2001:470::1]", "2001:470::1"),
        ("10.0.0.1", '"[2001:470::1]:443"', "2001:470::1"),
        ("10.0.0.1", "1.2.3.4:1, 198.51.100.1:2, 10.9.9.9:3", "198.51.100.1"),
        ("10.0.0.1", "[::ffff:198.51.100.1]:443", "::ffff:c633:6401"),
        ("10.0.0.1", "2001:470::443", "2001:470::443"),
        ("10.0.0.1", "198.51.100.1:", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1:x", "10.0.0.1"),
        ("10.0.0.1", "[198.51.100.1", "10.0.0.1"),
    ],
)
def test_the_client_is_the_first_untrusted_hop_from_the_right(peer: str, forwarded: str | None, address: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == address


@given(st.text(max_size=200))
def test_without_a_trusted_proxy_no_header_changes_the_address(forwarded: str) -> None:
    assert client_address("203.0.113.1", forwarded, PROXIES) == "203.0.113.1"


def test_an_ipv6_household_is_one_address() -> None:
    assert limit_key("2001:db8:1:2:3::4") == limit_key("2001:db8:1:2::1") == "2001:db8:1:2::/64"
    assert limit_key("2001:db8:1:3::1") != limit_key("2001:db8:1:2::1")
    assert limit_key("::ffff:192.0.2.1") == limit_key("192.0.2.1") == "192.0.2.1"


async def spent(limits: Limits, key: str, rate: Rate, times: int) -> list[float]:
    """Return the seconds to wait for each event; 0 if it fits."""
    waits = []
    for _ in range(times):
        try:
            await limits.spend("test", key, rate)
            waits.append(0.0)
        except RateLimited as refusal:
            waits.append(float(refusal.headers["Retry-After"]))
    return waits


@pytest.mark.gen_test
async def test_a_burst_then_one_at_a_time(services: Services) -> None:
    async with place(services) as shared, Redis.from_url(shared.redis) as redis:
        for limits in (Limits(redis), away()):
            waits = await spent(limits, "a", Rate(5, 900), 7)
            assert waits[:5] == [0] * 5
            assert all(175 <= wait <= 180 for wait in waits[5:])
            assert (await spent(limits, "b", Rate(5, 900), 1)) == [0]
            quick = await spent(limits, "c", Rate(2, 3), 3)
            assert quick == [0, 0, 2]
            await asyncio.sleep(1.55)
            assert (await spent(limits, "c", Rate(2, 3), 2)) == [0, 2]
        assert await spent(Limits(redis, on=False), "a", Rate(1, 900), 9) == [0] * 9


def away() -> Limits:
    """Limits whose Redis can't be reached."""
    return Limits(Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0)))


@pytest.mark.gen_test
async def test_asking_costs_nothing(services: Services) -> None:
    async with place(services) as shared, Redis.from_url(shared.redis) as redis:
        for limits in (Limits(redis), away()):
            rate = Rate(2, 60)
            for _ in range(5):
                await limits.spend("test", "d", rate, cost=0)
            await spent(limits, "d", rate, 2)
            with pytest.raises(RateLimited):
                await limits.spend("test", "d", rate, cost=0)


@pytest.mark.gen_test
async def test_a_hundred_at_once_on_two_instances_let_five_through(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.limits.rates.REDIS_TIMEOUT", WAIT)  # without Redis each would let five through
    async with place(services) as shared, Redis.from_url(shared.redis) as one, Redis.from_url(shared.redis) as two:
        limits = [Limits(one), Limits(two)]
        rate = Rate(5, 900)
        results = await asyncio.gather(
            *(limits[number % 2].spend("test", "e", rate) for number in range(100)), return_exceptions=True
        )
        assert results.count(None) == 5


def test_a_peer_without_an_address_is_no_proxy() -> None:
    """As a client at a UNIX socket."""
    assert not within("", PROXIES)
    assert (client_address("", "203.0.113.1", PROXIES), limit_key("")) == ("", "")


@pytest.mark.gen_test
async def test_buckets_in_memory_are_bounded_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.limits.rates.LOCAL_KEYS", 2)
    async with Redis.from_url("redis://127.0.0.1:1") as redis:
        limits, once = Limits(redis), Rate(1, 3600)
        limits._away_until = float("inf")
        for key in ("a", "b", "c"):
            await limits.spend("x", key, once)
        for key in ("b", "c"):
            with pytest.raises(RateLimited):
                await limits.spend("x", key, once)
        await limits.spend("x", "a", once)
