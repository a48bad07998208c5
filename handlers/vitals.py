"""Vitals: metrics of the process, the event loop, the periodic tasks and PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram, Info, ProcessCollector, Summary

from config import last_backup
from config.hosts import DatabaseHost
from config.reasons import FAULTS
from config.version import VERSION
from handlers.http.site import Site
from handlers.metrics import SECONDS, Metrics
from handlers.passwords import Passwords
from handlers.sockets.delivery import Delivery

LAG_INTERVAL = 0.1  # seconds between two measurements of the loop's lag
# From half a millisecond, a usual turn, to a second, at which clients think that the server is down.
_LAG_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

OPERATIONS = ("SELECT", "INSERT", "UPDATE", "DELETE", "BEGIN", "COMMIT", "ROLLBACK", "OTHER")
CAUSES = ("unavailable", "disk_full", "conflict", "mistake")


def show_process(metrics: Metrics) -> None:
    """Show memory, processor time, open files and start time of the process (on Linux), and the version."""
    ProcessCollector(registry=metrics.registry)
    build = Info("mimu_build", "Versions of the server and of Python.", registry=metrics.registry)
    build.info({"version": VERSION, "python_version": platform.python_version()})


@contextlib.asynccontextmanager
async def measure_lag(metrics: Metrics) -> AsyncIterator[None]:
    """Measure how late the loop's timers fire, until the block ends: everything else waits as long."""
    delay = Histogram(
        "mimu_event_loop_lag_seconds",
        "Delay of a timer of the event loop, measured ten times a second.",
        buckets=_LAG_BUCKETS,
        registry=metrics.registry,
    )
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def measure(due: float) -> None:
        nonlocal timer
        now = time.monotonic()
        delay.observe(max(0.0, now - due))
        timer = loop.call_later(LAG_INTERVAL, measure, now + LAG_INTERVAL)

    timer = loop.call_later(LAG_INTERVAL, measure, time.monotonic() + LAG_INTERVAL)
    try:
        yield
    finally:
        timer.cancel()


def show_queues(metrics: Metrics, site: Site, delivery: Delivery, passwords: Passwords) -> None:
    """Show requests and uploads in progress, and the lengths of queues."""
    add_gauge = metrics.add_gauge
    add_gauge("mimu_http_requests_in_flight", "Requests being answered.", lambda: site.active)
    add_gauge("mimu_uploads_in_flight", "Uploads in progress.", lambda: site.pace.active)
    add_gauge("mimu_upload_pace_bytes_per_second", "Limit for the sum of all uploads.", lambda: site.pace.rate)
    add_gauge("mimu_delivery_queue_frames", "Queued frames to large groups.", delivery.waiting)
    add_gauge("mimu_password_queue_jobs", "Password hashes in progress or queued.", lambda: passwords.waiting)


def show_health(metrics: Metrics, found: Mapping[str, str], faults: Mapping[str, str]) -> None:
    """Show the results of the checks of ``/health``, and the fault of a failed check if it has a name."""
    metrics.add_gauges(
        "mimu_health_check_up",
        "1 if a check of /health passed when it last ran, every 15 seconds; else 0.",
        ("check",),
        lambda: {(check,): answer == "ok" for check, answer in found.items()},
    )
    metrics.add_gauges(
        "mimu_health_fault",
        "1 for the reason why a check of /health failed when it last ran; else 0.",
        ("check", "fault"),
        lambda: {(check, name): faults.get(check) == name for check, names in FAULTS.items() for name in names},
    )


def show_backups(metrics: Metrics, folder: Path) -> None:
    """Show the time of the last backup, from the file that it writes into the data folder."""
    started = time.time()

    def made_at() -> float:
        found = last_backup.read(folder)
        return found.made_at if found else started

    text = "Time of the last backup of this data folder; if there is none, of the server's start."
    metrics.add_gauge("mimu_last_backup_timestamp_seconds", text, made_at)


def show_database(
    metrics: Metrics,
    host_in_use: Callable[[], DatabaseHost],
    refused: Callable[[], Mapping[tuple[str, str], int]],
) -> None:
    """Show the host of the database, and the connections to other hosts that were refused, by host and reason."""
    metrics.add_gauges(
        "mimu_postgres_timeline",
        "Timeline of the database in use; it grows with each promotion of a standby.",
        ("host",),
        lambda: {(host_in_use().host,): host_in_use().timeline},
    )
    metrics.add_counters(
        "mimu_postgres_hosts_refused_total",
        "Connections that were refused because they reached a standby, or a database behind the one in use.",
        ("host", "reason"),
        lambda: {(host, reason): number for (host, reason), number in refused().items()},
    )


class Runs:
    """Metrics of periodic tasks."""

    def __init__(self, metrics: Metrics) -> None:
        self._runs = Counter(
            "mimu_periodic_runs_total", "Runs of periodic tasks.", ["task", "outcome"], registry=metrics.registry
        )
        self._interval = Gauge(
            "mimu_periodic_interval_seconds", "Time between two runs.", ["task"], registry=metrics.registry
        )
        self._success = Gauge(
            "mimu_periodic_last_success_timestamp_seconds",
            "Time of the last successful run; before the first one, of the server's start.",
            ["task"],
            registry=metrics.registry,
        )
        self._seconds = Summary(
            "mimu_periodic_run_duration_seconds", "Duration of a run.", ["task"], registry=metrics.registry
        )

    def planned(self, task: str, seconds: float) -> None:
        """Add a task that runs every so many seconds. Its series begin now, so that they exist before its first run."""
        self._interval.labels(task).set(seconds)
        self._success.labels(task).set_to_current_time()
        self._seconds.labels(task)
        for outcome in ("done", "failed"):
            self._runs.labels(task, outcome)

    def ended(self, task: str, outcome: str, seconds: float) -> None:
        """Count a finished run, ``done`` or ``failed``."""
        self._runs.labels(task, outcome).inc()
        self._seconds.labels(task).observe(seconds)
        if outcome == "done":
            self._success.labels(task).set_to_current_time()


class Sweeps:
    """Metrics of sweeps: rows that are left, and rows that failed."""

    def __init__(self, metrics: Metrics) -> None:
        self._backlog = Gauge(
            "mimu_sweep_backlog",
            "Rows that the last run of a sweep left for the next one; counted up to 10,000.",
            ["sweep"],
            registry=metrics.registry,
        )
        self._failed = Counter(
            "mimu_sweep_bad_rows_total", "Rows at which a sweep failed.", ["sweep"], registry=metrics.registry
        )

    def planned(self, sweep: str) -> None:
        """Add a sweep. Its series begin now, so that a first failure shows as an increase."""
        self._backlog.labels(sweep)
        self._failed.labels(sweep)

    def backlog(self, sweep: str, rows: int) -> None:
        """Set how many rows a finished run left for the next one."""
        self._backlog.labels(sweep).set(rows)

    def failed(self, sweep: str, rows: int) -> None:
        """Count rows that a run failed at and skips for a while."""
        self._failed.labels(sweep).inc(rows)


class Statements:
    """Metrics of statements and connections; models/postgres/statements.py reports them."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self._acquired = Histogram(
            "mimu_postgres_pool_acquire_duration_seconds",
            "Time spent waiting for a free connection of the pool.",
            buckets=SECONDS,
            registry=registry,
        )
        self._answered = Histogram(
            "mimu_postgres_statement_duration_seconds",
            "Duration of a statement.",
            ["operation"],
            buckets=SECONDS,
            registry=registry,
        )
        self._failed = Counter(
            "mimu_postgres_failures_total",
            "Statements, and waits for a connection, that failed.",
            ["cause"],
            registry=registry,
        )
        self._metrics = metrics
        self._operations = {operation: self._answered.labels(operation) for operation in OPERATIONS}
        for cause in CAUSES:
            self._failed.labels(cause)

    def acquired(self, seconds: float) -> None:
        self._acquired.observe(seconds)

    def answered(self, operation: str, seconds: float) -> None:
        self._operations[operation].observe(seconds)

    def failed(self, cause: str) -> None:
        self._failed.labels(cause).inc()

    def pool(self, usage: Callable[[], Sequence[int]]) -> None:
        """Show a pool. ``usage`` returns the limit, the size, the idle connections, and the requests that wait."""

        def connections() -> dict[tuple[str, ...], float]:
            _, size, idle, _ = usage()
            return {("idle",): idle, ("in_use",): size - idle}

        name = "mimu_postgres_pool"
        self._metrics.add_gauges(f"{name}_connections", "Connections of the pool.", ("state",), connections)
        self._metrics.add_gauge(f"{name}_max_connections", "Size limit of the pool.", lambda: usage()[0])
        self._metrics.add_gauge(f"{name}_waiting_requests", "Requests that wait for a connection.", lambda: usage()[3])
