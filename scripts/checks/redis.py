"""Redis: whether it is there, takes writes, carries messages, and forgets nothing."""

from __future__ import annotations

import secrets
import socket
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.maint_notifications import MaintNotificationsConfig

from config import embedded, reasons
from config.findings import Examination, Finding, StopExamination, good, skipped, weak, wrong
from config.settings import Core

REDIS_TIMEOUT = 3  # seconds to connect, and for each answer
MINIMUM = 7
PINGS = 20
SLOW = 5  # milliseconds; a request that is limited waits for one answer, a frame to another instance for one more
FULL_SOON, FULL = 0.75, 0.95

PARTS = ("reachable", "version", "writes", "channels", "persistence", "eviction", "memory", "latency")


def examination(core: Core) -> Examination:
    async def look() -> AsyncIterator[Finding]:
        url = core.redis_url.get_secret_value() if core.redis_url else embedded.valkey_of(core.mimu_data_dir)
        if url is None:
            yield skipped("reachable", "There is no REDIS_URL, and the embedded one runs only with its server.")
            raise StopExamination("Redis does not run")
        redis = Redis.from_url(
            url,
            socket_connect_timeout=REDIS_TIMEOUT,
            socket_timeout=REDIS_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            decode_responses=True,
        )
        try:
            begun = time.monotonic()
            try:
                await redis.ping()
            except (RedisError, OSError, TimeoutError, ValueError) as error:
                yield wrong("reachable", *_refused(error))
                raise StopExamination("Redis can't be reached") from None
            yield good("reachable", f"Redis let us in after {(time.monotonic() - begun) * 1e3:.0f} ms.")
            told: dict[str, Any] | None
            try:
                told = await redis.info("everything")
            except NoPermissionError:
                told = None
            if told is None:
                do = "Allow it: ACL SETUSER ... +info"
                yield weak("version", "This user may not ask INFO, so little can be told.", do)
            else:
                yield _version(told)
                if _mode(told) == "sentinel":
                    raise StopExamination("this is a Sentinel")
            async for finding in _writes(redis, told or {}):
                yield finding
            async for finding in _channels(redis):
                yield finding
            if told is not None:
                yield _persistence(told)
                yield _eviction(told)
                yield _memory(told)
            yield await _latency(redis)
        except (RedisError, OSError, TimeoutError) as error:
            raise StopExamination(f"Redis did not answer ({type(error).__name__})") from None
        finally:
            await redis.aclose()

    return Examination("redis", "Redis", PARTS, look)


def _refused(error: Exception) -> tuple[str, str]:
    """What is wrong, and what to do: by the kind of the error, for its text may quote the address."""
    if known := reasons.of_redis(error):
        return known
    if isinstance(error, AuthenticationError | NoPermissionError) or reasons.redis_code(error) == "WRONGPASS":
        return "Redis does not take the user or the password of REDIS_URL.", "Compare it with requirepass, or the ACL."
    if isinstance(error, BusyLoadingError):
        return "Redis is reading its data.", "Look again in a minute."
    if isinstance(error, socket.gaierror) or isinstance(error.__cause__, socket.gaierror):
        return "The host of REDIS_URL has no address.", "See whether its name is right, and DNS works here."
    name = type(error).__name__
    return f"Redis can't be reached ({name}).", "See that it runs, and that REDIS_URL and firewalls let us in."


def _mode(info: dict[str, Any]) -> object:
    """``standalone``, ``sentinel`` or ``cluster``, by Redis's name for it or Valkey's."""
    return info.get("redis_mode", info.get("server_mode"))


def _version(told: dict[str, Any]) -> Finding:
    if _mode(told) == "sentinel":
        return wrong("version", *reasons.SENTINEL)
    valkey = "valkey_version" in told
    name, version = ("Valkey", told["valkey_version"]) if valkey else ("Redis", str(told["redis_version"]))
    if told.get("cluster_enabled") == 1:
        do = "Name a single one, or a primary with replicas."
        return wrong("version", f"{name} {version} is a cluster, where Lua scripts of several keys fail.", do)
    if not valkey and int(version.partition(".")[0]) < MINIMUM:
        return wrong("version", f"Redis {version} is too old.", "Upgrade it to 7 or newer, or to Valkey.")
    return good("version", f"{name} {version}.")


async def _writes(redis: Any, told: dict[str, Any]) -> AsyncIterator[Finding]:
    key, value = f"doctor:{secrets.token_hex(8)}", secrets.token_hex(8)
    try:
        await redis.set(key, value, ex=10)
        script = "return redis.call('GET', KEYS[1])"
        same = await redis.eval(script, 1, key) == value
        await redis.delete(key)
    except ReadOnlyError:
        yield wrong("writes", "This is a replica, which takes no writes.", "Let REDIS_URL name the primary.")
    except OutOfMemoryError:
        do = "Raise maxmemory, and see what fills it: redis-cli --bigkeys"
        yield wrong("writes", "Redis is full, and refuses writes.", do)
    except NoPermissionError:
        do = "Allow it all: ACL SETUSER ... ~* &* +@all -@dangerous +info"
        yield wrong("writes", "This user may not do what the server does.", do)
    except ResponseError as error:
        misplaced = reasons.of_redis(error)
        if misplaced is reasons.CLUSTER or misplaced is reasons.SENTINEL:
            yield wrong("writes", *misplaced)
            return
        kind = reasons.redis_code(error)
        known = kind if kind in ("MISCONF", "NOREPLICAS", "OOM") else type(error).__name__
        yield wrong("writes", f"Redis refuses writes ({known}).", "Its own log says why; its disk may be full.")
    else:
        if told.get("role") == "slave":
            yield wrong("writes", "This is a replica that takes writes, and loses them.", "Name the primary.")
        elif same:
            yield good("writes", "It takes writes and runs scripts.")
        else:
            yield wrong("writes", "It does not give back what it was given.", "See what stands in between.")


async def _channels(redis: Any) -> AsyncIterator[Finding]:
    name = f"doctor:{secrets.token_hex(8)}"
    try:
        async with redis.pubsub() as heard:
            await heard.subscribe(name)
            await heard.get_message(timeout=REDIS_TIMEOUT)  # that we are subscribed
            await redis.publish(name, "here")
            message = await heard.get_message(ignore_subscribe_messages=True, timeout=REDIS_TIMEOUT)
    except NoPermissionError:
        yield wrong("channels", "This user may not use channels.", "Allow them: ACL SETUSER ... &* +@pubsub")
        return
    if message and message["data"] == "here":
        yield good("channels", "What is published is heard.")
    else:
        do = "See that REDIS_URL names one Redis, the same for all, and no proxy that knows no channels."
        yield wrong("channels", "What is published is not heard: instances do not hear each other.", do)


def _persistence(told: dict[str, Any]) -> Finding:
    failed = [
        name
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if told.get(name, "ok") != "ok"
    ]
    if failed:
        return wrong("persistence", f"Redis failed to write to its disk ({failed[0]}).", "Is that disk full?")
    if told.get("aof_enabled") != 1:
        says = "The append-only file is off: a restart loses pushes that wait, rate limits and calls that ring."
        return weak("persistence", says, "Set: appendonly yes")
    return good("persistence", "Every write goes into the append-only file.")


def _eviction(told: dict[str, Any]) -> Finding:
    policy = told.get("maxmemory_policy")
    if policy == "noeviction":
        return good("eviction", "A full Redis refuses writes, and forgets nothing.")
    says = f"When it is full, Redis drops keys ({policy}): rate limits, and pushes that wait."
    judged = wrong if told.get("maxmemory") else weak
    return judged("eviction", says, "Set: maxmemory-policy noeviction")


def _memory(told: dict[str, Any]) -> Finding:
    used, most = int(told.get("used_memory", 0)), int(told.get("maxmemory", 0))
    mib = f"{used >> 20} MiB"
    if not most:
        says = f"It uses {mib}, and may take whatever the machine has."
        return weak(
            "memory", says, "Set maxmemory to half of what it may have: rewriting its file needs as much again."
        )
    says = f"It uses {mib} of {most >> 20}."
    do = "Raise maxmemory, and see what fills it: redis-cli --bigkeys"
    if used > FULL * most:
        return wrong("memory", says, do)
    return weak("memory", says, do) if used > FULL_SOON * most else good("memory", says)


async def _latency(redis: Any) -> Finding:
    took = []
    for _ in range(PINGS):
        begun = time.perf_counter()
        await redis.ping()
        took.append((time.perf_counter() - begun) * 1e3)
    usual = statistics.quantiles(took, n=4)[0]  # not the median: we look at other things meanwhile, and are late
    if usual > SLOW:
        says = f"An answer takes {usual:.0f} ms, and most requests wait for one."
        return weak("latency", says, "Bring Redis nearer to the servers, and see what it is busy with: SLOWLOG GET")
    return good("latency", f"An answer takes {usual:.1f} ms.")
