"""Health and metrics: what a load balancer, an operator and Prometheus ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NotRequired

import structlog
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from handlers import errors
from handlers.base import ApiHandler
from handlers.limits import within
from handlers.metrics import CONTENT_TYPE
from handlers.operations import Answer, operation
from handlers.site import Check

log = structlog.get_logger(__name__)

Standing = Callable[[], tuple[str, int, int] | None]

PATIENCE = 2.0  # seconds; a service that needs longer to say that it is well, isn't


async def examine(checks: Mapping[str, Check]) -> dict[str, str]:
    """``ok`` or ``error`` for each check, all asked at once."""

    async def ask(name: str, check: Check) -> str:
        try:
            async with asyncio.timeout(PATIENCE):
                await check()
        except Exception as error:
            log.warning("check_failed", check=name, cause=type(error).__name__)
            return "error"
        return "ok"

    return dict(zip(checks, await asyncio.gather(*(ask(*item) for item in checks.items())), strict=True))


class DatabaseHost(TypedDict):
    """Of several hosts the one that is in use, its timeline, and how many connections to others were refused."""

    host: str
    timeline: int
    refused: int


@with_config(ConfigDict(extra="allow"))
class HealthReport(TypedDict):
    """Beside these stand ``ok`` or ``error`` for each service: ``database``, ``redis``, ``storage``. Only the networks
    of METRICS_ALLOW see ``database_host``, where DATABASE_URL names several."""

    status: Literal["healthy", "unhealthy"]
    uptime_seconds: int
    database_host: NotRequired[DatabaseHost]


class Liveness(TypedDict):
    status: Literal["live"]


class Health(ApiHandler):
    """``GET /health``; ``/health/ready`` asks only for what nothing works without."""

    public = True

    def initialize(self, checks: Mapping[str, Check], standing: Standing) -> None:
        self._checks, self._standing = checks, standing

    @operation({200: HealthReport, 503: Answer(HealthReport, "Something is not well.")})
    async def get(self) -> None:
        """Ask whether all is well.

        `/health/ready` asks only for what nothing works without. Both answer within 2 seconds.
        """
        found = await examine(self._checks)
        well = all(answer == "ok" for answer in found.values())
        uptime = int(time.monotonic() - self.application.metrics.started)
        status = "healthy" if well else "unhealthy"
        answer = {"status": status, **found, "uptime_seconds": uptime}
        standing = self._standing()
        if standing is not None and within(self.address, self.application.core.metrics_allow):
            host, timeline, refused = standing
            answer["database_host"] = {"host": host, "timeline": timeline, "refused": refused}
        self.reply(answer, 200 if well else 503)


class Live(ApiHandler):
    """``GET /health/live``: the process answers."""

    public = True

    @operation({200: Liveness})
    def get(self) -> None:
        """Ask whether the process answers."""
        self.reply({"status": "live"})


class MetricsPage(ApiHandler):
    """``GET /metrics``."""

    public = True

    @operation({200: Answer(words="Prometheus's text.", media="text/plain")}, refuses=(errors.NotFound,))
    def get(self) -> None:
        """Get the metrics, from the networks of `METRICS_ALLOW`; others are told that it isn't there."""
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
        ("/health", Health, {"checks": checks, "standing": standing}),
        ("/health/ready", Health, {"checks": ready, "standing": standing}),
        ("/health/live", Live, {}),
        ("/metrics", MetricsPage, {}),
    )
