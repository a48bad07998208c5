"""Traces: what a request, a frame or a commit consisted of, told to OpenTelemetry when somebody wants to know."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from typing import Any, TypeVar
from uuid import UUID

H = TypeVar("H", bound=Callable[..., Any])
Ended = Callable[[int], None]  # gets the status of an answer; 0 when nobody was left to take it
Told = Callable[[str, int], None]  # gets the outcome of a push, and the provider's status

PROTOCOL = "http/protobuf"


def _nobody(*_: object) -> None:
    """Nobody wants to know."""


class Traces:
    """Tells nobody, and costs nothing; what it is asked by the house is in ``config/spans.py``."""

    on = False

    def request(self, method: str, route: str | None, request_id: str, carrier: Mapping[str, str]) -> Ended | None:
        """A request begins, and is what goes on in this task from now on; Tornado has refused methods that a client
        made up. ``carrier`` are the headers of a proxy that is trusted, else nothing. What is returned is to be called
        at the end."""
        return None

    def framed(self, kind: str, handle: H) -> H:
        """The function that handles frames of a type, with whatever must be around it."""
        return handle

    def statement(self, operation: str, function: str) -> AbstractContextManager[None]:
        """A statement that a function of ours runs."""
        return contextlib.nullcontext()

    def batch(self, contexts: Sequence[Context]) -> AbstractContextManager[None]:
        """A commit for all that was put in these contexts."""
        return contextlib.nullcontext()

    def push(self, provider: str, kind: str) -> AbstractContextManager[Told]:
        """A push on its way to a provider, which is told its outcome."""
        return contextlib.nullcontext(_nobody)


def faults(values: Mapping[str, str]) -> list[str]:
    """What is wrong with settings of OpenTelemetry's that its SDK would find out later, or never."""
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        if values.get(name, PROTOCOL) != PROTOCOL:
            return [f"{name}: only {PROTOCOL} is spoken here"]
    return []


@contextlib.asynccontextmanager
async def traces(endpoint: str | None, instance_id: UUID) -> AsyncIterator[Traces]:
    """Traces until the block ends, to the collector at ``endpoint`` or at OTEL_EXPORTER_OTLP_TRACES_ENDPOINT. Only then
    OpenTelemetry is imported; its SDK reads the other variables called OTEL_* itself."""
    environ = os.environ
    asked = endpoint or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    if not asked or off:
        yield Traces()
        return
    from config import spans

    async with spans.exporting(endpoint, instance_id) as exported:
        yield exported
