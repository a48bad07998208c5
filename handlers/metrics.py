"""Metrics: one Prometheus registry per server, with labels from closed sets only (never an id, a path or a payload)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

# A `_created` series for each counter and histogram adds half as many series, which Prometheus ignores in this format.
disable_created_metrics()  # type: ignore[no-untyped-call]

# Buckets from 1 ms to 10 s: faster is a cache, slower is an outage.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# Clients may send any method; labels come from a closed set.
_METHODS = frozenset(("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"))

MAX_FRAME_TYPES = 200  # frame types that are counted separately; there are some fifty, further types count as "other"
SAMPLE_EVERY = 0.01  # seconds between two samples of a way; more samples would cost as much as the deliveries
WAYS = ("user", "group", "large_group")

Values = Callable[[], Mapping[tuple[str, ...], float]]  # numbers by label values
Family = type[CounterMetricFamily] | type[GaugeMetricFamily]


class _CallbackMetric(Collector):
    """A metric whose values come from a callback at each scrape."""

    def __init__(self, family: Family, name: str, text: str, labels: Sequence[str], values: Values) -> None:
        self._family, self._name, self._text, self._labels, self._values = family, name, text, labels, values

    def collect(self) -> Iterable[Metric]:
        family = self._family(self._name, self._text, labels=self._labels)
        for labels, value in self._values().items():
            family.add_metric(labels, value)
        yield family


class Metrics:
    """The metrics of the server itself; features add theirs to ``registry``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.started = time.monotonic()
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        # Plain numbers, because a Counter takes a lock each time and these grow with every frame.
        self._frames_in: dict[str, int] = {}
        self._frames_out: dict[str, int] = {}
        self.requests = Counter(
            "mimu_http_requests_total", "Requests answered.", ["handler", "method", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "mimu_http_request_duration_seconds",
            "Time from the headers of a request to its answer.",
            ["handler"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.clients = Counter(
            "mimu_clients_total", "Requests that opened or refreshed a session.", ["platform"], registry=self.registry
        )
        self.sockets = Gauge("mimu_websocket_connections", "Open sockets.", registry=self.registry)
        self._register(
            CounterMetricFamily,
            "mimu_websocket_frames_received_total",
            "Frames from clients.",
            ("type",),
            lambda: {(kind,): number for kind, number in self._frames_in.items()},
        )
        self._register(
            CounterMetricFamily,
            "mimu_websocket_frames_sent_total",
            "Frames queued to sockets.",
            ("type",),
            lambda: {(kind,): number for kind, number in self._frames_out.items()},
        )
        self.frames_dropped = Counter(
            "mimu_websocket_frames_dropped_total", "Frames dropped because a client was slow.", registry=self.registry
        )
        self.frames_refused = Counter(
            "mimu_websocket_frames_refused_total", "Frames answered with an error.", ["code"], registry=self.registry
        )
        self.closes = Counter(
            "mimu_websocket_closed_total", "Sockets closed by the server.", ["code"], registry=self.registry
        )
        self.uploaded = self.downloaded = 0  # bytes
        self.add_counter("mimu_uploads_bytes_total", "Bytes of files received by this instance.", lambda: self.uploaded)
        self.add_counter("mimu_downloads_bytes_total", "Bytes of files sent by this instance.", lambda: self.downloaded)
        self.delivery_seconds = Histogram(
            "mimu_delivery_duration_seconds",
            "Time from an event (its commit, if it has one) until its frames were written to the sockets; sampled.",
            ["way"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._ways = {way: self.delivery_seconds.labels(way) for way in WAYS}
        self._next_sample = dict.fromkeys(WAYS, 0.0)

    # Metrics with callbacks -----------------------------------------------------------------------------------------

    def _register(self, family: Family, name: str, text: str, labels: Sequence[str], values: Values) -> None:
        self.registry.register(_CallbackMetric(family, name, text, labels, values))

    def add_counter(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a counter whose value comes from a callback."""
        self._register(CounterMetricFamily, name, text, (), lambda: {(): value()})

    def add_counters(self, name: str, text: str, labels: Sequence[str], values: Values) -> None:
        """Add a counter with labels; ``values`` returns the numbers by label values."""
        self._register(CounterMetricFamily, name, text, labels, values)

    def add_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value comes from a callback."""
        self._register(GaugeMetricFamily, name, text, (), lambda: {(): value()})

    def add_gauges(self, name: str, text: str, labels: Sequence[str], values: Values) -> None:
        """Add a gauge with labels; ``values`` returns the numbers by label values."""
        self._register(GaugeMetricFamily, name, text, labels, values)

    # Requests and frames --------------------------------------------------------------------------------------------

    def count_request(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request. The children are cached: looking labels up costs more than counting."""
        key = (handler, method if method in _METHODS else "other", status)
        children = self._children.get(key)
        if children is None:
            children = (self.requests.labels(*key), self.request_seconds.labels(handler))
            self._children[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def count_received(self, kind: str) -> None:
        """Count one frame from a client, of a type that a feature handles."""
        self._frames_in[kind] = self._frames_in.get(kind, 0) + 1

    def count_sent(self, kind: str, sockets: int) -> None:
        """Count a frame that was queued to so many sockets."""
        try:
            self._frames_out[kind] += sockets
        except KeyError:  # the first of its type, or an unknown type from another instance
            kind = kind if len(self._frames_out) < MAX_FRAME_TYPES else "other"
            self._frames_out[kind] = self._frames_out.get(kind, 0) + sockets

    def sample_delivery(self, way: str, began: float) -> None:
        """Measure a delivery that began at ``began`` (monotonic) and whose frames are now in the queues of sockets.

        The queues are flushed in the loop's next turn, and a callback after them measures the time. Each way is
        sampled every SAMPLE_EVERY seconds, because one look at the clock is all that a message can pay for.
        """
        now = time.monotonic()
        if now >= self._next_sample[way]:
            self._next_sample[way] = now + SAMPLE_EVERY
            asyncio.get_running_loop().call_soon(self._observe_delivery, way, began)

    def _observe_delivery(self, way: str, began: float) -> None:
        self._ways[way].observe(time.monotonic() - began)

    def exposition(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        return generate_latest(self.registry)
