"""Rate limits: GCRA, counted in Redis for all instances together, and in this process while Redis is down."""

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

from config.values import Network, Rate
from handlers.redis_service import REDIS_ERRORS
from handlers.wire.errors import RateLimited

log = structlog.get_logger(__name__)

# Returns the key under which the present request is counted. ApiHandler sets it; it is only computed when used.
CLIENT_KEY: ContextVar[Callable[[], str]] = ContextVar("client_key", default=lambda: "")
# Adds the state of a limit to the headers of the present answer; set together with CLIENT_KEY.
SHOW_QUOTA: ContextVar[Callable[[Quota], None]] = ContextVar("show", default=lambda _: None)
_HOP = re.compile(r'"?(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?"?')

LOCAL_KEYS = 50_000  # buckets in memory while Redis is down; the oldest are dropped first
# Seconds after which Redis counts as down. With less, each process of a machine that is busy for a moment would count
# alone, and together they would allow more than the limit.
REDIS_TIMEOUT = 1.0

# GCRA stores one number for each bucket: the theoretical arrival time of the next event, in microseconds of Redis's
# clock, because the clocks of instances differ. ARGV: emission interval, burst, cost.
# Returns 0 if the event fits, else the microseconds until it does; and the microseconds until the bucket is full.
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
    """The state of a limit or a budget: ``left`` of ``count`` in ``window`` seconds. It is full again in ``reset``
    seconds; if nothing is left, ``reset`` is when something is. ``unit`` is the quota unit of the draft, "" for
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
    """Counts events by key; ``spend`` raises RateLimited when they come faster than their rate."""

    def __init__(self, redis: Redis, *, on: bool = True) -> None:
        self.on = on
        self._redis = redis
        self._script = redis.register_script(_GCRA)
        self._local: OrderedDict[str, float] = OrderedDict()
        self._away_until = 0.0

    async def spend(self, name: str, key: str, rate: Rate, cost: int = 1, *, shown: bool = False) -> None:
        """Count ``cost`` events of the limit ``name`` for ``key``. ``cost=0`` only checks whether one event would fit.

        With ``shown`` the answer to the request shows the state of the limit; only for limits that the caller
        alone can spend. Raises RateLimited with the seconds after which the next event fits.
        """
        if not self.on:
            return
        wait, ahead = await self._wait(f"limit:{name}:{key}", rate, cost)
        if shown:
            left = 0 if wait > 0 else max(0, int(rate.count - ahead * rate.count / rate.seconds + 1e-6))
            # Of several events at once some may fit, but not all.
            SHOW_QUOTA.get()(
                Quota(name, rate.count, rate.seconds, left, wait if wait > 0 else _reset(ahead, left, rate))
            )
        if wait > 0:
            raise RateLimited(wait)

    async def refund(self, name: str, key: str, rate: Rate) -> None:
        """Refund one counted event that had no effect."""
        if self.on:
            await self._wait(f"limit:{name}:{key}", rate, -1)

    async def _wait(self, bucket: str, rate: Rate, cost: int) -> tuple[float, float]:
        """Return the seconds until the events fit (0 if they do), and the seconds until the bucket is full."""
        interval = rate.seconds / rate.count
        if time.monotonic() >= self._away_until:
            try:
                async with asyncio.timeout(REDIS_TIMEOUT):
                    # Cost 0 checks whether one more event would fit: counted as one event, not stored.
                    wait, ahead = await self._script(
                        keys=[bucket], args=[int(interval * 1e6), rate.count - (1 if cost == 0 else 0), cost]
                    )
                return int(wait) / 1e6, int(ahead) / 1e6
            except REDIS_ERRORS:
                # Retry in a second: else each request would wait for Redis while it is down.
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
    """Return the seconds until a limit is full again; if nothing is left, until something is."""
    return ahead if left else max(0.0, ahead - rate.seconds + rate.seconds / rate.count)


class Bucket:
    """A token bucket in this process, for events that are too frequent for Redis: the frames of one socket."""

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
    """Return the client's address: the peer, or behind trusted proxies the first untrusted hop of X-Forwarded-For, read
    from the right, because the client may have written everything to the left of it."""
    hops = [hop.strip() for hop in (forwarded or "").split(",") if hop.strip()]
    address = peer
    while hops and within(address, trusted):
        try:
            address = str(ipaddress.ip_address(_without_port(hops.pop())))
        except ValueError:
            break
    return address


def _without_port(hop: str) -> str:
    """Return an entry of X-Forwarded-For without its port: ``203.0.113.5:51234`` or ``[2001:db8::1]:443``."""
    match = _HOP.fullmatch(hop)
    return (match[1] or match[2]) if match else hop


def within(address: str, networks: tuple[Network, ...]) -> bool:
    """True if the address belongs to one of the networks; IPv4 written as IPv6 counts as IPv4."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)


def limit_key(address: str) -> str:
    """Return the key under which an address is counted: the address, or for IPv6 its /64, which one household has."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False).network_address) + "/64"
    return str(parsed)
