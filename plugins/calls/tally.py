"""Call metrics: calls that began to ring, were answered, and ended, by status and reason."""

from __future__ import annotations

from prometheus_client import Counter

from handlers.metrics import Metrics

TYPES = ("audio", "video")
# Every end of a call in models/calls.py, so that each series exists before the first one.
ENDS = (
    ("ended", "hangup"),
    ("ended", "superseded"),
    ("ended", "heartbeat_lost"),
    ("ended", "connection_lost"),
    ("rejected", "declined"),
    ("rejected", "busy"),
    ("missed", "cancelled"),
    ("missed", "timeout"),
    ("failed", "failed"),
)


class Tally:
    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self._started = Counter("mimu_calls_started_total", "Calls that began to ring.", ["type"], registry=registry)
        self._answered = Counter("mimu_calls_answered_total", "Calls that were answered.", ["type"], registry=registry)
        self._ended = Counter("mimu_calls_ended_total", "Calls that ended.", ["status", "reason"], registry=registry)
        for kind in TYPES:
            self._started.labels(kind)
            self._answered.labels(kind)
        for end in ENDS:
            self._ended.labels(*end)

    def started(self, kind: str) -> None:
        self._started.labels(kind).inc()

    def answered(self, kind: str) -> None:
        self._answered.labels(kind).inc()

    def ended(self, status: str, reason: str | None) -> None:
        self._ended.labels(status, reason or "hangup").inc()
