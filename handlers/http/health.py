"""Health and metrics: the routes for load balancers, operators and Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NotRequired
from uuid import UUID

import structlog
from pydantic import ConfigDict, with_config
from redis.asyncio import Redis
from typing_extensions import TypedDict

from config import hosts, reasons
from config.reasons import Unfit
from handlers.http.base import ApiHandler
from handlers.http.site import Check
from handlers.limits.rates import within
from handlers.metrics import CONTENT_TYPE
from handlers.redis_service import takes_writes
from handlers.wire import errors
from handlers.wire.costs import MONITORS
from handlers.wire.operations import Answer, operation

log = structlog.get_logger(__name__)

ChosenHost = Callable[[], hosts.DatabaseHost | None]

CHECK_TIMEOUT = 2.0  # seconds; a service that answers later is unhealthy
CACHE_SECONDS = 2.0  # for which the result of a write is reused
LOG_INTERVAL = 60.0  # seconds between two log lines about a check that still fails for the same reason


class CachedCheck:
    """A check that writes. It runs once for all concurrent callers, and its result is reused for ``CACHE_SECONDS``."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._run: asyncio.Task[Exception | None] | None = None
        self._ended = 0.0

    async def __call__(self) -> None:
        """Run the check, or reuse its result. Raises Unfit."""
        if self._run is None or (self._run.done() and time.monotonic() - self._ended >= CACHE_SECONDS):
            self._run = asyncio.create_task(self._outcome())
        error = await asyncio.shield(self._run)  # because other callers wait for it, too
        if error is not None:
            raise Unfit(reasons.explain(error)) from error

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
        # The fault of each check whose last run failed, if config.reasons has a name for it.
        self.faults: dict[str, str] = {}

    async def examine(self) -> dict[str, str]:
        """Run all checks concurrently. Returns ``ok`` or ``error`` for each."""
        answers = await asyncio.gather(*(self._run_check(*item) for item in self._checks.items()))
        return dict(zip(self._checks, answers, strict=True))

    async def _run_check(self, name: str, check: Check) -> str:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await check()
        except Exception as error:
            self._log(name, error)
            self.faults.pop(name, None)
            if fault := reasons.fault_name(name, error):
                self.faults[name] = fault
            return "error"
        self.faults.pop(name, None)
        if self._logged.pop(name, None):
            log.info("check_recovered", check=name)
        return "ok"

    def _log(self, name: str, error: Exception) -> None:
        cause, now = type(error.__cause__ or error).__name__, time.monotonic()
        before, moment = self._logged.get(name, ("", 0.0))
        if cause != before or now - moment >= LOG_INTERVAL:
            self._logged[name] = cause, now
            reason = str(error) if isinstance(error, Unfit) else reasons.explain(error)
            log.warning("check_failed", check=name, cause=cause, reason=reason)


def services(
    answers: Check, writes: Check, redis: Redis, is_subscribed: Callable[[], bool], instance_id: UUID
) -> dict[str, Check]:
    """Return the checks of PostgreSQL (``answers``, and ``writes`` with a cached result) and of Redis, which is only
    healthy while ``is_subscribed`` returns True."""
    written, kept = CachedCheck(writes), CachedCheck(lambda: takes_writes(redis, instance_id))

    async def database() -> None:
        await answers()
        await written()

    async def cache() -> None:
        await redis.ping()
        await kept()
        if not is_subscribed():
            raise Unfit("the subscriptions are down")

    return {"database": database, "redis": cache}


class DatabaseHost(TypedDict):
    """The database host in use, its timeline, and the number of connections to other hosts that were refused."""

    host: str
    timeline: int
    refused: int


class Seen(TypedDict):
    """How the request reached this server: the scheme and host that it uses in links, and the client's address."""

    url: str
    address: str


@with_config(ConfigDict(extra="allow"))
class HealthReport(TypedDict):
    """It also has ``ok`` or ``error`` for each service: ``database``, ``redis``, ``storage``. Only the networks of
    METRICS_ALLOW receive ``database_host``, if DATABASE_URL names several; ``seen`` is for requests with a token."""

    status: Literal["healthy", "unhealthy"]
    uptime_seconds: int
    database_host: NotRequired[DatabaseHost]
    seen: NotRequired[Seen]


class Liveness(TypedDict):
    status: Literal["live"]


class Health(ApiHandler):
    """``GET /health``; ``/health/ready`` checks only the services that everything needs."""

    public = True

    def initialize(self, examiner: Examiner, chosen_host: ChosenHost) -> None:
        self._examiner, self._chosen_host = examiner, chosen_host

    @operation({200: HealthReport, 503: Answer(HealthReport, "A check failed.")}, cost=MONITORS)
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
        host = self._chosen_host()
        if host is not None and within(self.address, self.application.core.metrics_allow):
            answer["database_host"] = host._asdict()
        if self.authenticated:
            answer["seen"] = {"url": self.origin, "address": self.address}
        self.reply(answer, 200 if well else 503)


class Live(ApiHandler):
    """``GET /health/live``: 200 if the process answers."""

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
    checks: Mapping[str, Check], ready: Mapping[str, Check], chosen_host: ChosenHost
) -> tuple[tuple[str, type[ApiHandler], dict[str, Any]], ...]:
    """Return the routes for proxies and monitors. Both mappings may be filled later. ``chosen_host`` returns the
    database host in use if there are several."""
    return (
        ("/health", Health, {"examiner": Examiner(checks), "chosen_host": chosen_host}),
        ("/health/ready", Health, {"examiner": Examiner(ready), "chosen_host": chosen_host}),
        ("/health/live", Live, {}),
        ("/metrics", MetricsPage, {}),
    )
