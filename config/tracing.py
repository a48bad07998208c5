"""Tracing: whether traces are exported to an OpenTelemetry collector, and with which settings."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from uuid import UUID

from config.traces import Traces

PROTOCOL = "http/protobuf"


def faults(values: Mapping[str, str]) -> list[str]:
    """Return the faults of OpenTelemetry's settings that its SDK would report late, or not at all."""
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        if values.get(name, PROTOCOL) != PROTOCOL:
            return [f"{name}: only {PROTOCOL} is supported"]
    return []


@contextlib.asynccontextmanager
async def traces(endpoint: str | None, instance_id: UUID) -> AsyncIterator[Traces]:
    """Export traces until the block ends, to the collector at ``endpoint`` or at OTEL_EXPORTER_OTLP_TRACES_ENDPOINT.
    OpenTelemetry is imported only if one of them is set; its SDK reads the other variables called OTEL_* itself."""
    environ = os.environ
    wanted = endpoint or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    if not wanted or off:
        yield Traces()
        return
    from config import spans

    async with spans.exporting(endpoint, instance_id) as exported:
        yield exported
