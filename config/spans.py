"""Spans: export Traces to OpenTelemetry. This module is imported only if traces are on.

Names and attributes follow OpenTelemetry's semantic conventions. They are methods, routes, types, codes and names of
our functions: never a path, an address, the id of a user, a statement or a value.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from typing import Any
from uuid import UUID

import structlog
from opentelemetry.context import Context as Around
from opentelemetry.context import attach, detach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from config.logs import TRACE
from config.traces import EndRequest, H, ReportOutcome, Traces
from config.version import VERSION

log = structlog.get_logger(__name__)

SHUTDOWN_SECONDS = 2.0  # seconds in which a server that stops tries to send the remaining spans


class Spans(Traces):
    """Records requests, frames, statements, commits and pushes as spans."""

    on = True

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    # Requests -------------------------------------------------------------------------------------------------------

    def request(self, method: str, route: str | None, request_id: str, carrier: Mapping[str, str]) -> EndRequest | None:
        attributes = {"http.request.method": method, "mimu.request_id": request_id}
        if route is not None:
            attributes["http.route"] = route
        span = self._tracer.start_span(
            f"{method} {route or ''}".rstrip(),
            self._propagator.extract(carrier, Around()),
            SpanKind.SERVER,
            attributes,
        )
        attach(set_span_in_context(span))  # until the task ends, which it does with the request
        if span.is_recording():
            structlog.contextvars.bind_contextvars(trace_id=_id(span))
        return functools.partial(self._end_request, span)

    @staticmethod
    def _end_request(span: Span, status: int) -> None:
        if status:
            span.set_attribute("http.response.status_code", status)
        if status >= 500 or not status:
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", str(status) if status else "client_gone")
        span.end()

    # Frames ---------------------------------------------------------------------------------------------------------

    def trace_frames(self, kind: str, handle: H) -> H:
        name, attributes = f"frame {kind}", {"mimu.frame.type": kind}

        def traced(*arguments: Any) -> Any:
            # A socket lives for days: each frame is a separate trace, with a link to the handshake.
            opened = get_current_span().get_span_context()
            links = [Link(opened)] if opened.is_valid else None
            span = self._tracer.start_span(name, Around(), SpanKind.SERVER, attributes, links)
            try:
                with _current(span):
                    answer = handle(*arguments)
            except Exception as error:
                _end(span, error)
                raise
            if isinstance(answer, asyncio.Future):
                answer.add_done_callback(functools.partial(_end_by_result, span))
            elif answer is None or isinstance(answer, Mapping):
                span.end()
            else:
                return _end_after(span, answer)
            return answer

        return traced  # type: ignore[return-value]  # it has the signature of ``handle``

    # Statements, commits, pushes --------------------------------------------------------------------------------------

    def statement(self, operation: str, function: str) -> AbstractContextManager[None]:
        """Record a statement, if it belongs to a span that is recorded: those of periodic tasks don't."""
        return self._statement(operation, function) if get_current_span().is_recording() else contextlib.nullcontext()

    @contextlib.contextmanager
    def _statement(self, operation: str, function: str) -> Iterator[None]:
        attributes = {
            "db.system.name": "postgresql",
            "db.operation.name": operation,
            "code.function.name": function,
        }
        span = self._tracer.start_span(f"{operation} {function}", None, SpanKind.CLIENT, attributes)
        try:
            yield
        except BaseException as error:
            state = getattr(error, "sqlstate", None)
            if isinstance(state, str):
                span.set_attribute("db.response.status_code", state)
            _end(span, error)
            raise
        span.end()

    def batch(self, contexts: Sequence[Context]) -> AbstractContextManager[None]:
        spans = [span for context in contexts if (span := context.run(get_current_span)).is_recording()]
        return self._batch(spans, len(contexts)) if spans else contextlib.nullcontext()

    @contextlib.contextmanager
    def _batch(self, spans: Sequence[Span], messages: int) -> Iterator[None]:
        """Record a commit with links to the spans of all its messages. It belongs to the trace of the first one: a
        message that is committed alone has its commit in its own trace."""
        span = self._tracer.start_span(
            "journal commit",
            set_span_in_context(spans[0], Around()),
            SpanKind.INTERNAL,
            {"mimu.batch.messages": messages},
            [Link(each.get_span_context()) for each in spans],
        )
        try:
            with _current(span):
                yield
        except BaseException as error:
            _end(span, error)
            raise
        span.end()

    @contextlib.contextmanager
    def push(self, provider: str, kind: str) -> Iterator[ReportOutcome]:
        attributes = {"mimu.push.provider": provider, "mimu.push.kind": kind}
        span = self._tracer.start_span(f"push {provider}", Around(), SpanKind.CLIENT, attributes)

        def report(outcome: str, status: int) -> None:
            span.set_attribute("mimu.push.outcome", outcome)
            if status:
                span.set_attribute("http.response.status_code", status)
            if outcome in ("later", "refused"):
                span.set_status(StatusCode.ERROR)

        try:
            with _current(span):
                yield report
        finally:
            span.end()


def _id(span: Span) -> str:
    return format_trace_id(span.get_span_context().trace_id)


@contextlib.contextmanager
def _current(span: Span) -> Iterator[None]:
    """Make the span the current one in the block; log lines written there have the trace's id."""
    token = attach(set_span_in_context(span))
    bound = structlog.contextvars.bind_contextvars(trace_id=_id(span)) if span.is_recording() else {}
    try:
        yield
    finally:
        structlog.contextvars.reset_contextvars(**bound)
        detach(token)


def _end(span: Span, error: BaseException) -> None:
    """End a span with the kind of an error, never its text."""
    status, code = getattr(error, "status", 500), getattr(error, "code", None)
    if not isinstance(status, int) or status >= 500:
        span.set_status(StatusCode.ERROR)
    span.set_attribute("error.type", code if isinstance(code, str) else type(error).__name__)
    if span.is_recording():
        error.add_note(TRACE + _id(span))  # the error may be logged after the span has ended
    span.end()


def _end_by_result(span: Span, answer: asyncio.Future[Any]) -> None:
    error = asyncio.CancelledError() if answer.cancelled() else answer.exception()
    if error is None:
        span.end()
    else:
        _end(span, error)


async def _end_after(span: Span, answer: Awaitable[Any]) -> Any:
    try:
        with _current(span):
            result = await answer
    except BaseException as error:
        _end(span, error)
        raise
    span.end()
    return result


# The exporter ---------------------------------------------------------------------------------------------------------


class _LoggingExporter(SpanExporter):
    """The exporter, in the processor's thread. It logs once that the collector is away, and once that it is back. In
    between the processor queues 2,048 spans and drops further ones."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        cause = None
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            result, cause = SpanExportResult.FAILURE, type(error).__name__
        away = result is not SpanExportResult.SUCCESS
        if away != self._away:
            self._away = away
            if away:
                log.warning("traces_collector_away", cause=cause)
            else:
                log.info("traces_collector_back")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


@contextlib.asynccontextmanager
async def exporting(endpoint: str | None, instance_id: UUID) -> AsyncIterator[Spans]:
    """Export spans to a collector until the block ends."""
    attributes = {"service.version": VERSION, "service.instance.id": str(instance_id)}
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not named:
        attributes["service.name"] = "mimu"
    # ``endpoint`` is a base URL, to which the path is added (OTLP exporter specification). The SDK reads it only from
    # the environment, and ours may come from an env file. A URL for traces alone is used unchanged.
    own = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" in os.environ or endpoint is None
    exporter = OTLPSpanExporter(None if own else f"{endpoint}/v1/traces")
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_LoggingExporter(exporter)))
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it would log each failed attempt
    log.info("traces_on")
    try:
        yield Spans(provider.get_tracer("mimu", VERSION))
    finally:
        await _shut_down(provider.shutdown)


async def _shut_down(shutdown: Callable[[], None]) -> None:
    """Send the remaining spans, in a thread; wait for it SHUTDOWN_SECONDS at most, since the collector may be away."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def work() -> None:
        shutdown()
        with contextlib.suppress(RuntimeError):  # the loop has been closed in the meantime
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=work, name="traces", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SHUTDOWN_SECONDS):
            await ended.wait()
