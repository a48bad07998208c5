"""Rate limits: GCRA counted in Redis for all instances together, and in this process while Redis is away."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from config.values import Network, Rate
from handlers.wire.errors import RateLimited

log = structlog.get_logger(__name__)

# What the request being answered is counted under; set for each by ApiHandler, computed only by what asks for it.
CLIENT_KEY: ContextVar[Callable[[], str]] = ContextVar("client_key", default=lambda: "")
# Where the answer to that request says how a limit stands; set with it.
SHOW: ContextVar[Callable[[Quota], None]] = ContextVar("show", default=lambda _: None)
_HOP = re.compile(r'"?(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?"?')

LOCAL_KEYS = 50_000  # buckets kept while Redis is away; the oldest go first
# Seconds; a Redis that is slower than that counts as away. Less, and a machine that is busy for a moment would count in
# each process for itself, and let more through than the limit.
REDIS_TIMEOUT = 1.0

# GCRA keeps one number a bucket, the theoretical arrival time of the next event in microseconds. It is asked of
# Redis's own clock, so that instances whose clocks differ agree. ARGV: emission interval, burst, cost.
# Returns 0 when the event fits, else the microseconds until it will; and those until nothing counts any more.
_GCRA = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local arrival = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local next_arrival = math.max(arrival + interval * cost, now)
local wait = next_arrival - interval * burst - now
if wait > 0 then return {math.ceil(wait), math.ceil(arrival - now)} end
if cost ~= 0 then
  redis.call('SET', KEYS[1], string.format('%.0f', next_arrival), 'PX', math.ceil((next_arrival - now) / 1000) + 1000)
  arrival = next_arrival
end
return {0, math.ceil(arrival - now)}
"""


@dataclass(frozen=True, slots=True)
class Quota:
    """How a limit or a budget stands: ``left`` of ``count`` in ``window`` seconds. It is full again in ``reset``
    seconds; where nothing is left, something is then. ``unit`` is the draft's name of what is counted, "" for
    requests."""

    name: str
    count: int
    window: int
    left: int
    reset: float
    unit: str = ""

    @property
    def policy(self) -> str:
        """The item of the header RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers)."""
        unit = f';qu="{self.unit}"' if self.unit else ""
        return f'"{self.name}";q={self.count};w={self.window}{unit}'

    @property
    def standing(self) -> str:
        """The item of the header RateLimit."""
        return f'"{self.name}";r={self.left};t={math.ceil(self.reset)}'


class Limits:
    """Counts events a key; ``spend`` raises RateLimited when they come faster than their rate."""

    def __init__(self, redis: Redis, *, on: bool = True) -> None:
        self.on = on
        self._redis = redis
        self._script = redis.register_script(_GCRA)
        self._local: OrderedDict[str, float] = OrderedDict()
        self._away_until = 0.0

    async def spend(self, name: str, key: str, rate: Rate, cost: int = 1, *, shown: bool = False) -> None:
        """Count ``cost`` events of the limit ``name`` for ``key``. ``cost=0`` only asks whether one would fit.

        If it is ``shown``, the answer to the request says how the limit stands; for limits that only the
        caller spends. Raises RateLimited with the seconds after which the next one fits.
        """
        if not self.on:
            return
        wait, ahead = await self._wait(f"limit:{name}:{key}", rate, cost)
        if shown:
            left = 0 if wait > 0 else max(0, int(rate.count - ahead * rate.count / rate.seconds + 1e-6))
            # Of several events at once some may be left, and yet too few.
            SHOW.get()(Quota(name, rate.count, rate.seconds, left, wait if wait > 0 else _reset(ahead, left, rate)))
        if wait > 0:
            raise RateLimited(wait)

    async def refund(self, name: str, key: str, rate: Rate) -> None:
        """Take back one event that was counted, because it came to nothing."""
        if self.on:
            await self._wait(f"limit:{name}:{key}", rate, -1)

    async def _wait(self, bucket: str, rate: Rate, cost: int) -> tuple[float, float]:
        """The seconds until the events fit, 0 if they do, and until nothing counts any more."""
        interval = rate.seconds / rate.count
        if time.monotonic() >= self._away_until:
            try:
                async with asyncio.timeout(REDIS_TIMEOUT):
                    # A question of cost 0 is whether one more event would fit: asked as one event, not stored.
                    wait, ahead = await self._script(
                        keys=[bucket], args=[int(interval * 1e6), rate.count - (1 if cost == 0 else 0), cost]
                    )
                return int(wait) / 1e6, int(ahead) / 1e6
            except (RedisError, OSError, TimeoutError):
                # Ask again in a second: while Redis is away each request would else wait for it.
                self._away_until = time.monotonic() + 1
                log.warning("limits_counted_locally")
        return self._wait_here(bucket, rate, interval, cost)

    def _wait_here(self, bucket: str, rate: Rate, interval: float, cost: int) -> tuple[float, float]:
        now = time.monotonic()
        if cost < 0:
            if bucket in self._local:
                self._local[bucket] += interval * cost
            return 0.0, 0.0
        following = max(self._local.get(bucket, 0.0), now) + interval * max(cost, 1)
        wait = following - interval * rate.count - now
        if wait <= 1e-9 and cost:
            self._local[bucket] = following
            self._local.move_to_end(bucket)
            if len(self._local) > LOCAL_KEYS:
                self._local.popitem(last=False)
        return (wait if wait > 1e-9 else 0.0), max(self._local.get(bucket, now) - now, 0.0)


def _reset(ahead: float, left: int, rate: Rate) -> float:
    """Seconds until a limit is full again; where nothing is left, until something is."""
    return ahead if left else max(0.0, ahead - rate.seconds + rate.seconds / rate.count)


class Bucket:
    """A token bucket in this process, for what happens too often to ask Redis about: frames of one socket."""

    __slots__ = ("_burst", "_rate", "_stamp", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens = burst
        self._stamp = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._stamp) * self._rate)
        self._stamp = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def client_address(peer: str, forwarded: str | None, trusted: tuple[Network, ...]) -> str:
    """The client's address: the peer, or behind trusted proxies the first untrusted hop of X-Forwarded-For, read
    from the right, since everything left of it is the client's own word."""
    hops = [hop.strip() for hop in (forwarded or "").split(",") if hop.strip()]
    address = peer
    while hops and within(address, trusted):
        try:
            address = str(ipaddress.ip_address(_without_port(hops.pop())))
        except ValueError:
            break
    return address


def _without_port(hop: str) -> str:
    """An entry of X-Forwarded-For as an address: some proxies write ``203.0.113.5:51234`` or ``[2001:db8::1]:443``."""
    match = _HOP.fullmatch(hop)
    return (match[1] or match[2]) if match else hop


def within(address: str, networks: tuple[Network, ...]) -> bool:
    """Whether the address belongs to one of the networks; IPv4 written as IPv6 counts as IPv4."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)


def limit_key(address: str) -> str:
    """What an address is counted under: itself, or for IPv6 its /64, which one household has to itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False).network_address) + "/64"
    return str(parsed)
