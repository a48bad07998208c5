"""Redis: whether it is reachable, accepts writes, delivers messages, and keeps its keys."""

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
SLOW = 5  # milliseconds; a rate-limited request waits for one reply, a frame to another instance for one more
FULL_SOON, FULL = 0.75, 0.95

PARTS = ("reachable", "version", "writes", "channels", "persistence", "eviction", "memory", "latency")


def examination(core: Core) -> Examination:
    async def look() -> AsyncIterator[Finding]:
        url = core.redis_url.get_secret_value() if core.redis_url else embedded.valkey_of(core.mimu_data_dir)
        if url is None:
            yield skipped("reachable", "REDIS_URL is unset, and the embedded Valkey runs only while its server runs.")
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
            yield good("reachable", f"The connection was accepted after {(time.monotonic() - begun) * 1e3:.0f} ms.")
            info: dict[str, Any] | None
            try:
                info = await redis.info("everything")
            except NoPermissionError:
                info = None
            if info is None:
                do = "Allow it: ACL SETUSER ... +info"
                yield weak("version", "This user may not run INFO, so most checks are impossible.", do)
            else:
                yield _version(info)
                if _mode(info) == "sentinel":
                    raise StopExamination("this is a Sentinel")
            async for finding in _writes(redis, info or {}):
                yield finding
            async for finding in _channels(redis):
                yield finding
            if info is not None:
                yield _persistence(info)
                yield _eviction(info)
                yield _memory(info)
            yield await _latency(redis)
        except (RedisError, OSError, TimeoutError) as error:
            raise StopExamination(f"Redis did not answer ({type(error).__name__})") from None
        finally:
            await redis.aclose()

    return Examination("redis", "Redis", PARTS, look)


def _refused(error: Exception) -> tuple[str, str]:
    """Return what is wrong and what to do, by the type of the error: its text may contain the URL."""
    if known := reasons.of_redis(error):
        return known
    if isinstance(error, AuthenticationError | NoPermissionError) or reasons.redis_code(error) == "WRONGPASS":
        return "Redis rejects the user or the password of REDIS_URL.", "Compare it with requirepass, or the ACL."
    if isinstance(error, BusyLoadingError):
        return "Redis is loading its data.", "Try again in a minute."
    if isinstance(error, socket.gaierror) or isinstance(error.__cause__, socket.gaierror):
        return "The host of REDIS_URL has no address.", "Check its name, and that DNS works here."
    name = type(error).__name__
    return f"Redis can't be reached ({name}).", "Check that it runs, and check REDIS_URL and firewalls."


def _mode(info: dict[str, Any]) -> object:
    """``standalone``, ``sentinel`` or ``cluster``, from Redis's field or Valkey's."""
    return info.get("redis_mode", info.get("server_mode"))


def _version(info: dict[str, Any]) -> Finding:
    if _mode(info) == "sentinel":
        return wrong("version", *reasons.SENTINEL)
    valkey = "valkey_version" in info
    name, version = ("Valkey", info["valkey_version"]) if valkey else ("Redis", str(info["redis_version"]))
    if info.get("cluster_enabled") == 1:
        do = "Use a single Redis, or a primary with replicas."
        return wrong("version", f"{name} {version} is a cluster, where Lua scripts with several keys fail.", do)
    if not valkey and int(version.partition(".")[0]) < MINIMUM:
        return wrong("version", f"Redis {version} is too old.", "Upgrade it to 7 or newer, or to Valkey.")
    return good("version", f"{name} {version}.")


async def _writes(redis: Any, info: dict[str, Any]) -> AsyncIterator[Finding]:
    key, value = f"doctor:{secrets.token_hex(8)}", secrets.token_hex(8)
    try:
        await redis.set(key, value, ex=10)
        script = "return redis.call('GET', KEYS[1])"
        same = await redis.eval(script, 1, key) == value
        await redis.delete(key)
    except ReadOnlyError:
        yield wrong("writes", "This is a replica, which accepts no writes.", "Set REDIS_URL to the primary.")
    except OutOfMemoryError:
        do = "Raise maxmemory, and find what fills it: redis-cli --bigkeys"
        yield wrong("writes", "Redis is full and rejects writes.", do)
    except NoPermissionError:
        do = "Allow it all: ACL SETUSER ... ~* &* +@all -@dangerous +info"
        yield wrong("writes", "This user may not run all commands that the server needs.", do)
    except ResponseError as error:
        misplaced = reasons.of_redis(error)
        if misplaced is reasons.CLUSTER or misplaced is reasons.SENTINEL:
            yield wrong("writes", *misplaced)
            return
        kind = reasons.redis_code(error)
        known = kind if kind in ("MISCONF", "NOREPLICAS", "OOM") else type(error).__name__
        yield wrong("writes", f"Redis rejects writes ({known}).", "See its log; its disk may be full.")
    else:
        if info.get("role") == "slave":
            yield wrong(
                "writes", "This is a replica that accepts writes and loses them.", "Set REDIS_URL to the primary."
            )
        elif same:
            yield good("writes", "It accepts writes and runs scripts.")
        else:
            yield wrong("writes", "A value that was written is not read back.", "Check for a proxy in between.")


async def _channels(redis: Any) -> AsyncIterator[Finding]:
    name = f"doctor:{secrets.token_hex(8)}"
    try:
        async with redis.pubsub() as subscription:
            await subscription.subscribe(name)
            await subscription.get_message(timeout=REDIS_TIMEOUT)  # the confirmation
            await redis.publish(name, "here")
            message = await subscription.get_message(ignore_subscribe_messages=True, timeout=REDIS_TIMEOUT)
    except NoPermissionError:
        yield wrong("channels", "This user may not use channels.", "Allow them: ACL SETUSER ... &* +@pubsub")
        return
    if message and message["data"] == "here":
        yield good("channels", "Published messages are received.")
    else:
        do = "Set REDIS_URL to the same Redis for all servers, without a proxy that lacks channels."
        yield wrong("channels", "Published messages are not received, so instances can't notify each other.", do)


def _persistence(info: dict[str, Any]) -> Finding:
    failed = [
        name
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if info.get(name, "ok") != "ok"
    ]
    if failed:
        return wrong(
            "persistence", f"Redis failed to write to its disk ({failed[0]}).", "Check whether that disk is full."
        )
    if info.get("aof_enabled") != 1:
        says = "The append-only file is off: a restart loses queued pushes, rate limits and ringing calls."
        return weak("persistence", says, "Set: appendonly yes")
    return good("persistence", "Every write goes into the append-only file.")


def _eviction(info: dict[str, Any]) -> Finding:
    policy = info.get("maxmemory_policy")
    if policy == "noeviction":
        return good("eviction", "A full Redis rejects writes and drops no keys.")
    says = f"When it is full, Redis drops keys ({policy}): rate limits and queued pushes."
    severity = wrong if info.get("maxmemory") else weak
    return severity("eviction", says, "Set: maxmemory-policy noeviction")


def _memory(info: dict[str, Any]) -> Finding:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    mib = f"{used >> 20} MiB"
    if not most:
        says = f"It uses {mib}, and has no limit."
        return weak(
            "memory", says, "Set maxmemory to half of the memory for Redis: rewriting its file needs as much again."
        )
    says = f"It uses {mib} of {most >> 20}."
    do = "Raise maxmemory, and find what fills it: redis-cli --bigkeys"
    if used > FULL * most:
        return wrong("memory", says, do)
    return weak("memory", says, do) if used > FULL_SOON * most else good("memory", says)


async def _latency(redis: Any) -> Finding:
    took = []
    for _ in range(PINGS):
        begun = time.perf_counter()
        await redis.ping()
        took.append((time.perf_counter() - begun) * 1e3)
    usual = statistics.quantiles(took, n=4)[0]  # not the median: the other examinations run meanwhile and delay us
    if usual > SLOW:
        says = f"A reply takes {usual:.0f} ms, and most requests wait for one."
        return weak("latency", says, "Move Redis closer to the servers, and find slow commands: SLOWLOG GET")
    return good("latency", f"A reply takes {usual:.1f} ms.")
