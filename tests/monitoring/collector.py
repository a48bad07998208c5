"""A collector of traces that speaks OTLP over HTTP, for tests: it decodes what comes, and keeps it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from tests.waiting import WAIT


@dataclass(frozen=True)
class Span:
    """One span, as it came."""

    name: str
    trace: str
    id: str
    parent: str
    links: frozenset[str]  # ids of spans
    kind: int
    status: int
    attributes: dict[str, Any]
    resource: dict[str, Any]


@dataclass
class Collector:
    url: str = ""
    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)  # Content-Types

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    async def expect(self, name: str, **attributes: Any) -> Span:
        """A span of that name with these attributes, whose dots are written as ``__``."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}.items()
        async with asyncio.timeout(WAIT):
            while True:
                for span in self.named(name):
                    if wanted <= span.attributes.items():
                        return span
                await asyncio.sleep(0.02)

    def children(self, parent: Span) -> list[Span]:
        return [span for span in self.spans if (span.trace, span.parent) == (parent.trace, parent.id)]


def _value(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")


def _taken(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    found = []
    for resource in request.resource_spans:
        about = {one.key: _value(one.value) for one in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                assert not span.events, "an event may bear an exception's text"
                found.append(
                    Span(
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        frozenset(link.span_id.hex() for link in span.links),
                        span.kind,
                        span.status.code,
                        {one.key: _value(one.value) for one in span.attributes},
                        about,
                    )
                )
                assert not span.status.message, "a status may bear an exception's text"
    return found


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector until the block ends."""
    collector = Collector()

    class Taking(RequestHandler):
        def post(self) -> None:
            collector.kinds.add(self.request.headers["Content-Type"])
            collector.bodies.append(self.request.body)
            collector.spans += _taken(self.request.body)
            self.set_header("Content-Type", "application/x-protobuf")
            self.finish(ExportTraceServiceResponse().SerializeToString())

    server = HTTPServer(Application([("/v1/traces", Taking)]))
    socket, port = bind_unused_port(address="127.0.0.1")
    server.add_socket(socket)
    collector.url = f"http://127.0.0.1:{port}"
    try:
        yield collector
    finally:
        server.stop()
        await server.close_all_connections()
