"""Metrics: one Prometheus registry a server, with labels from closed sets only (never an id, a path or a payload)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

# When each series began is half as many series again, and nothing that Prometheus would make use of in this format.
disable_created_metrics()  # type: ignore[no-untyped-call]

# 1 ms to 10 s: below is a cache, beyond is an outage.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# A client may invent methods; a label may not be invented.
_METHODS = frozenset(("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"))

MAX_FRAME_TYPES = 200  # types of frames that are told apart; there are some fifty, and nobody may make more of them
SAMPLE_EVERY = 0.01  # seconds between two samples of a way; more of them would cost what they measure
WAYS = ("user", "group", "large_group")

Values = Callable[[], Mapping[tuple[str, ...], float]]  # by the values of the labels
Family = type[CounterMetricFamily] | type[GaugeMetricFamily]


class _CallbackMetric(Collector):
    """A family that is read where it is kept, when somebody asks for it."""

    def __init__(self, family: Family, name: str, text: str, labels: Sequence[str], values: Values) -> None:
        self._family, self._name, self._text, self._labels, self._values = family, name, text, labels, values

    def collect(self) -> Iterable[Metric]:
        family = self._family(self._name, self._text, labels=self._labels)
        for labels, value in self._values().items():
            family.add_metric(labels, value)
        yield family


class Metrics:
    """Everything the house counts; features add their own to ``registry``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.started = time.monotonic()
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        # Plain numbers, for what is counted with every frame: a Counter takes a lock each time.
        self._frames_in: dict[str, int] = {}
        self._frames_out: dict[str, int] = {}
        self.requests = Counter(
            "mimu_http_requests_total", "Requests answered.", ["handler", "method", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "mimu_http_request_duration_seconds",
            "Time from headers to answer.",
            ["handler"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.clients = Counter(
            "mimu_clients_total", "Requests that opened or refreshed a session.", ["platform"], registry=self.registry
        )
        self.sockets = Gauge("mimu_websocket_connections", "Sockets open now.", registry=self.registry)
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
            "Frames put into the queues of sockets.",
            ("type",),
            lambda: {(kind,): number for kind, number in self._frames_out.items()},
        )
        self.frames_dropped = Counter(
            "mimu_websocket_frames_dropped_total", "Frames a slow client missed.", registry=self.registry
        )
        self.frames_refused = Counter(
            "mimu_websocket_frames_refused_total", "Frames answered with an error.", ["code"], registry=self.registry
        )
        self.closes = Counter(
            "mimu_websocket_closed_total", "Sockets the server closed.", ["code"], registry=self.registry
        )
        self.uploaded = self.downloaded = 0  # bytes
        self.add_counter("mimu_uploads_bytes_total", "Bytes of files taken here.", lambda: self.uploaded)
        self.add_counter("mimu_downloads_bytes_total", "Bytes of files sent from here.", lambda: self.downloaded)
        self.delivery_seconds = Histogram(
            "mimu_delivery_duration_seconds",
            "Time from what happened (a commit, if there was one) until the frames were with the kernel; sampled.",
            ["way"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._ways = {way: self.delivery_seconds.labels(way) for way in WAYS}
        self._next_sample = dict.fromkeys(WAYS, 0.0)

    # What is read where it is kept ----------------------------------------------------------------------------------

    def _register(self, family: Family, name: str, text: str, labels: Sequence[str], values: Values) -> None:
        self.registry.register(_CallbackMetric(family, name, text, labels, values))

    def add_counter(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A counter that is read from where it is kept."""
        self._register(CounterMetricFamily, name, text, (), lambda: {(): value()})

    def add_counters(self, name: str, text: str, labels: Sequence[str], values: Values) -> None:
        """The same with labels: ``values`` gives the numbers by the values of these."""
        self._register(CounterMetricFamily, name, text, labels, values)

    def add_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is read from where it is kept."""
        self._register(GaugeMetricFamily, name, text, (), lambda: {(): value()})

    def add_gauges(self, name: str, text: str, labels: Sequence[str], values: Values) -> None:
        """The same with labels: ``values`` gives the numbers by the values of these."""
        self._register(GaugeMetricFamily, name, text, labels, values)

    # Requests and frames --------------------------------------------------------------------------------------------

    def count_request(self, handler: str, method: str, status: int, seconds: float) -> None:
        """One answered request. The children are kept: looking labels up costs more than counting."""
        key = (handler, method if method in _METHODS else "other", status)
        children = self._children.get(key)
        if children is None:
            children = (self.requests.labels(*key), self.request_seconds.labels(handler))
            self._children[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def count_received(self, kind: str) -> None:
        """One frame from a client, of a type that a feature claims."""
        self._frames_in[kind] = self._frames_in.get(kind, 0) + 1

    def count_sent(self, kind: str, sockets: int) -> None:
        """A frame that so many sockets have taken."""
        try:
            self._frames_out[kind] += sockets
        except KeyError:  # its first; or what another instance says is a type, and is none
            kind = kind if len(self._frames_out) < MAX_FRAME_TYPES else "other"
            self._frames_out[kind] = self._frames_out.get(kind, 0) + sockets

    def sample_delivery(self, way: str, began: float) -> None:
        """Frames of what happened at ``began`` (monotonic) were put into the queues of sockets. Those go to the kernel
        in the loop's next turn, and what is called after them measures how long that took: of each way so often, for
        a look at the clock is all that a message can pay."""
        now = time.monotonic()
        if now >= self._next_sample[way]:
            self._next_sample[way] = now + SAMPLE_EVERY
            asyncio.get_running_loop().call_soon(self._observe_delivery, way, began)

    def _observe_delivery(self, way: str, began: float) -> None:
        self._ways[way].observe(time.monotonic() - began)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
