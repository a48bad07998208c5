"""Canaries: secrets that tests send to servers, and that must come out of no log, metric or error."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_planted: set[str] = set()


def plant(*secrets: str) -> None:
    """Watch for these. Short ones are left out: they would turn up by chance."""
    _planted.update(secret for secret in secrets if len(secret) >= 8)


def clear() -> None:
    _planted.clear()


def escaped(text: str) -> list[str]:
    """The canaries that a text contains."""
    return [secret for secret in _planted if secret in text]


def labels(registry: CollectorRegistry) -> Iterator[str]:
    """The values of all labels: the only texts of a metric that come from a request. Rendering it would take longer."""
    for collector in registry._collector_to_names:
        if not isinstance(collector, (Counter, Gauge, Histogram)):  # it finds its values when it is read
            for family in collector.collect():
                yield from (value for sample in family.samples for value in sample.labels.values())
        elif collector._labelnames:
            yield from (value for values in collector._metrics for value in values)
