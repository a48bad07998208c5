"""Metrics: one Prometheus registry a server, with labels from closed sets only (never an id, a path or a payload)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

# 1 ms to 10 s: below is a cache, beyond is an outage.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# A client may invent methods; a label may not be invented.
_METHODS = frozenset(("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"))


class _Kept(Collector):
    def __init__(self, name: str, text: str, value: Callable[[], float]) -> None:
        self._name, self._text, self._value = name, text, value

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(self._name, self._text, value=self._value())


class Metrics:
    """Everything the house counts; features add their own to ``registry``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.started = time.monotonic()
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._frame_children: dict[str, Counter] = {}
        self.requests = Counter(
            "mimu_http_requests_total", "Requests answered.", ["handler", "method", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "mimu_http_request_duration_seconds",
            "Time from headers to answer.",
            ["handler"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.clients = Counter(
            "mimu_clients_total", "Requests that opened or refreshed a session.", ["platform"], registry=self.registry
        )
        self.sockets = Gauge("mimu_websocket_connections", "Sockets open now.", registry=self.registry)
        self.frames_in = Counter(
            "mimu_websocket_frames_received_total", "Frames from clients.", ["type"], registry=self.registry
        )
        self.frames_dropped = Counter(
            "mimu_websocket_frames_dropped_total", "Frames a slow client missed.", registry=self.registry
        )
        self.closes = Counter(
            "mimu_websocket_closed_total", "Sockets the server closed.", ["code"], registry=self.registry
        )
        self.periodic_runs = Counter(
            "mimu_periodic_runs_total", "Runs of periodic tasks.", ["task", "outcome"], registry=self.registry
        )
        self.uptime = Gauge("mimu_uptime_seconds", "Time since start.", registry=self.registry)
        self.uptime.set_function(lambda: time.monotonic() - self.started)

    def counts(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A counter that is read from where it is kept."""
        self.registry.register(_Kept(name, text, value))

    def observe(self, handler: str, method: str, status: int, seconds: float) -> None:
        """One answered request. The children are kept: looking labels up costs more than counting."""
        key = (handler, method if method in _METHODS else "other", status)
        children = self._children.get(key)
        if children is None:
            children = (self.requests.labels(*key), self.request_seconds.labels(handler))
            self._children[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def frame(self, kind: str) -> None:
        """One frame from a client, of a type that a feature claims."""
        child = self._frame_children.get(kind)
        if child is None:
            child = self._frame_children[kind] = self.frames_in.labels(kind)
        child.inc()

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
