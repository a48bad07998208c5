"""Health and metrics: what a load balancer, an operator and Prometheus ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NotRequired
from uuid import UUID

import structlog
from pydantic import ConfigDict, with_config
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError
from typing_extensions import TypedDict

from config import reasons
from config.reasons import Reason
from handlers.http.base import ApiHandler
from handlers.http.site import Check
from handlers.limits.rates import within
from handlers.metrics import CONTENT_TYPE
from handlers.wire import errors
from handlers.wire.costs import MONITORS
from handlers.wire.operations import Answer, operation

log = structlog.get_logger(__name__)

Standing = Callable[[], tuple[str, int, int] | None]

CHECK_TIMEOUT = 2.0  # seconds; a service that needs longer to say that it is well, isn't
FRESH = 2.0  # seconds for which the outcome of a write counts, however often it is asked for
REPEAT = 60.0  # seconds between two lines in the log about a check that goes on failing for one reason
KEPT = 60  # seconds that Redis keeps what was written to try it


class Unfit(Exception):
    """A service answers, and can't be used; the text says why, and ``reason`` what is known of it."""

    def __init__(self, why: str | Reason) -> None:
        super().__init__(why if isinstance(why, str) else " ".join(why))
        self.reason = None if isinstance(why, str) else why


class Remembered:
    """A check that costs a write: run once at a time, for all who ask meanwhile, and for ``FRESH`` seconds after."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._run: asyncio.Task[Exception | None] | None = None
        self._ended = 0.0

    async def __call__(self) -> None:
        """Raises what the check has raised."""
        if self._run is None or (self._run.done() and time.monotonic() - self._ended >= FRESH):
            self._run = asyncio.create_task(self._outcome())
        error = await asyncio.shield(self._run)  # others wait for it, too
        if error is not None:
            raise Unfit(reasons.explained(error)) from error

    async def _outcome(self) -> Exception | None:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await self._check()
        except Exception as error:
            return error
        finally:
            self._ended = time.monotonic()
        return None


class Examiner:
    """Runs checks, and logs why one fails: at once, and then once a minute."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = checks
        self._logged: dict[str, tuple[str, float]] = {}
        # Why each check fails that failed when it was made last, where config.reasons has a name for it.
        self.faults: dict[str, str] = {}

    async def examine(self) -> dict[str, str]:
        """Return ``ok`` or ``error`` for each check; all run at the same time."""
        answers = await asyncio.gather(*(self._ask(*item) for item in self._checks.items()))
        return dict(zip(self._checks, answers, strict=True))

    async def _ask(self, name: str, check: Check) -> str:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await check()
        except Exception as error:
            self._log(name, error)
            self.faults.pop(name, None)
            if fault := reasons.fault(name, error):
                self.faults[name] = fault
            return "error"
        self.faults.pop(name, None)
        if self._logged.pop(name, None):
            log.info("check_recovered", check=name)
        return "ok"

    def _log(self, name: str, error: Exception) -> None:
        cause, now = type(error.__cause__ or error).__name__, time.monotonic()
        before, moment = self._logged.get(name, ("", 0.0))
        if cause != before or now - moment >= REPEAT:
            self._logged[name] = cause, now
            reason = str(error) if isinstance(error, Unfit) else reasons.explained(error)
            log.warning("check_failed", check=name, cause=cause, reason=reason)


def services(
    answers: Check, writes: Check, redis: Redis, hears: Callable[[], bool], instance_id: UUID
) -> dict[str, Check]:
    """Return the checks of PostgreSQL (``answers``, and ``writes``, remembered) and of Redis, which ``hears`` the other
    instances."""
    written, kept = Remembered(writes), Remembered(lambda: redis_takes_writes(redis, instance_id))

    async def database() -> None:
        await answers()
        await written()

    async def cache() -> None:
        await redis.ping()
        await kept()
        if not hears():
            raise Unfit("the subscriptions are away")

    return {"database": database, "redis": cache}


async def redis_takes_writes(redis: Redis, instance_id: UUID) -> None:
    """Write a key that expires, and see what kind of Redis took it. Raises Unfit, RedisError."""
    if not await redis.set(f"health:{instance_id}", b"1", ex=KEPT):
        raise Unfit("Redis did not keep what it was given")
    try:
        greeting = await redis.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except (NoPermissionError, ResponseError):
        return  # it may not be asked, and took the write
    said = greeting if isinstance(greeting, dict) else dict(zip(greeting[::2], greeting[1::2], strict=False))
    if said.get(b"mode") == b"cluster":
        raise Unfit(reasons.CLUSTER)
    if said.get(b"role") in (b"slave", b"replica"):
        raise Unfit(reasons.LOSING_REPLICA)


class DatabaseHost(TypedDict):
    """Of several hosts the one that is in use, its timeline, and how many connections to others were refused."""

    host: str
    timeline: int
    refused: int


class Seen(TypedDict):
    """How the request reached this server: the scheme and host of links that it makes, and the client's address."""

    url: str
    address: str


@with_config(ConfigDict(extra="allow"))
class HealthReport(TypedDict):
    """Beside these stand ``ok`` or ``error`` for each service: ``database``, ``redis``, ``storage``. Only the networks
    of METRICS_ALLOW see ``database_host``, where DATABASE_URL names several; ``seen`` is for requests with a token."""

    status: Literal["healthy", "unhealthy"]
    uptime_seconds: int
    database_host: NotRequired[DatabaseHost]
    seen: NotRequired[Seen]


class Liveness(TypedDict):
    status: Literal["live"]


class Health(ApiHandler):
    """``GET /health``; ``/health/ready`` asks only for what nothing works without."""

    public = True

    def initialize(self, examiner: Examiner, standing: Standing) -> None:
        self._examiner, self._standing = examiner, standing

    @operation({200: HealthReport, 503: Answer(HealthReport, "Something is not well.")}, cost=MONITORS)
    async def get(self) -> None:
        """Check whether the server is well.

        PostgreSQL and Redis are `ok` if they take a write, which the server makes at most every 2 seconds.
        `/health/ready` checks only what nothing works without: it is 200 while PostgreSQL answers and takes that write,
        also when Redis or the storage of files is away. Both answer within 2 seconds.
        """
        found = await self._examiner.examine()
        well = all(answer == "ok" for answer in found.values())
        uptime = int(time.monotonic() - self.application.metrics.started)
        status = "healthy" if well else "unhealthy"
        answer: dict[str, Any] = {"status": status, **found, "uptime_seconds": uptime}
        standing = self._standing()
        if standing is not None and within(self.address, self.application.core.metrics_allow):
            host, timeline, refused = standing
            answer["database_host"] = {"host": host, "timeline": timeline, "refused": refused}
        if self.authenticated:
            answer["seen"] = {"url": self.origin, "address": self.address}
        self.reply(answer, 200 if well else 503)


class Live(ApiHandler):
    """``GET /health/live``: the process answers."""

    public = True

    @operation({200: Liveness}, cost=MONITORS)
    def get(self) -> None:
        """Check whether the process answers."""
        self.reply({"status": "live"})


class MetricsPage(ApiHandler):
    """``GET /metrics``."""

    public = True

    @operation({200: Answer(words="Prometheus's text.", media="text/plain")}, refuses=(errors.NotFound,), cost=MONITORS)
    def get(self) -> None:
        """Get the metrics, in Prometheus's text.

        For the networks of `METRICS_ALLOW` (loopback and private ones unless set); 404 for others.
        """
        if not within(self.address, self.application.core.metrics_allow):
            raise errors.NotFound
        self.set_header("Content-Type", CONTENT_TYPE)
        self.finish(self.application.metrics.exposition())


def routes(
    checks: Mapping[str, Check], ready: Mapping[str, Check], standing: Standing
) -> tuple[tuple[str, type[ApiHandler], dict[str, Any]], ...]:
    """Return the routes by which proxies and monitors look at a server. Both mappings may be filled later; ``standing``
    gives the database's host of several, its timeline, and the number of connections that were refused."""
    return (
        ("/health", Health, {"examiner": Examiner(checks), "standing": standing}),
        ("/health/ready", Health, {"examiner": Examiner(ready), "standing": standing}),
        ("/health/live", Live, {}),
        ("/metrics", MetricsPage, {}),
    )
