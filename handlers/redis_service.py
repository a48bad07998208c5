"""Redis as a service: the client, its errors, and whether it accepts writes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from config import reasons
from config.reasons import Unfit

REDIS_ERRORS = (RedisError, OSError, TimeoutError)  # Redis is away, or rejects a command
KEY_SECONDS = 60  # until Redis expires the test key


@contextlib.asynccontextmanager
async def redis_client(url: str) -> AsyncIterator[Redis]:
    """A Redis client that closes when the block ends. It connects at its first command, and reconnects when needed.

    The client does not retry, because the caller decides what to do while Redis is down. It does not subscribe to
    maintenance notifications, which only Redis's cloud sends: with them the client believes that connections are open
    which Redis closed when it died, and loses the first message after its return.
    """
    redis = Redis.from_url(
        url,
        socket_connect_timeout=1,
        socket_timeout=2,
        retry=Retry(NoBackoff(), 0),
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    try:
        yield redis
    finally:
        await redis.aclose()


async def takes_writes(redis: Redis, instance_id: UUID) -> None:
    """Write a key that expires, and check the kind and role of the Redis server. Raises Unfit, RedisError."""
    if not await redis.set(f"health:{instance_id}", b"1", ex=KEY_SECONDS):
        raise Unfit("Redis did not keep a key")
    try:
        greeting = await redis.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except (NoPermissionError, ResponseError):
        return  # HELLO is not permitted; the write succeeded
    fields = greeting if isinstance(greeting, dict) else dict(zip(greeting[::2], greeting[1::2], strict=False))
    if fields.get(b"mode") == b"cluster":
        raise Unfit(reasons.CLUSTER)
    if fields.get(b"role") in (b"slave", b"replica"):
        raise Unfit(reasons.LOSING_REPLICA)
