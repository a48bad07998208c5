"""The tally: metrics of pushes, their outcome by provider and how long they took."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

from handlers.metrics import Metrics

# From the fastest possible (a call: 0.05 s; a message waits for 1 s) to a day.
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 1.25, 1.5, 2, 3, 5, 10, 30, 60, 300, 3600, 86_400)


REASONS = ("online", "seen", "muted", "unwanted", "over", "read", "topped_up", "expired", "no_token")


class Tally:
    def __init__(self, metrics: Metrics) -> None:
        self._sent = Counter(
            "mimu_push_total", "Answers of providers.", ["provider", "kind", "outcome"], registry=metrics.registry
        )
        self._seconds = Histogram(
            "mimu_push_duration_seconds",
            "From the event until the provider accepts the push.",
            ["provider", "kind"],
            buckets=_SECONDS,
            registry=metrics.registry,
        )
        self._dropped = Counter(
            "mimu_push_dropped_total", "Pushes that were dropped before sending.", ["reason"], registry=metrics.registry
        )
        self._postponed = Counter(
            "mimu_push_postponed_total",
            "Pushes that wait because their user or host has its full share.",
            registry=metrics.registry,
        )
        for reason in REASONS:
            self._dropped.labels(reason)
        self._depth = Gauge("mimu_push_queue_jobs", "Jobs in the queue.", ["part"], registry=metrics.registry)

    def answered(self, provider: str, kind: str, outcome: str, seconds: float) -> None:
        self._sent.labels(provider, kind, outcome).inc()
        if outcome == "sent":
            self._seconds.labels(provider, kind).observe(max(seconds, 0.0))

    def dropped(self, reason: str) -> None:
        self._dropped.labels(reason).inc()

    def postponed(self) -> None:
        self._postponed.inc()

    def depths(self, depths: Sequence[tuple[str, int]]) -> None:
        for part, depth in depths:
            self._depth.labels(part).set(depth)
