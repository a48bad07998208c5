"""The site: the Tornado application, with the services that every handler needs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from tornado.web import Application, RequestHandler

from config.settings import Core
from config.traces import Traces
from handlers.http.answers_in_flight import AnswerMemory
from handlers.http.compression import Compressor
from handlers.http.upload_pace import Pace
from handlers.limits.ledger import Ledger
from handlers.limits.rates import Limits
from handlers.metrics import Metrics
from handlers.tokens import Tokens

Check = Callable[[], Awaitable[None]]  # raises if the service is unhealthy

_GROUP = re.compile(r"\((?:[^()]|\([^()]*\))*\)")
_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}")


class Site(Application):
    """The services that all handlers share, and none of a single feature."""

    def __init__(
        self,
        routes: list[Any],
        *,
        unknown: type[RequestHandler],
        core: Core,
        tokens: Tokens,
        limits: Limits,
        ledger: Ledger,
        metrics: Metrics,
        checks: Mapping[str, Check],
        traces: Traces,
        outages: tuple[type[BaseException], ...],
    ) -> None:
        self.core = core
        self.tokens = tokens
        self.limits = limits
        self.ledger = ledger
        self.metrics = metrics
        self.checks = checks
        self.traces = traces
        self.outages = outages  # the exceptions that mean "a service is down", answered with 503
        self.active = 0  # requests being answered
        self.pace = Pace()  # throttles all uploads together
        self.compressor = Compressor()
        self.answers = AnswerMemory(core.answer_bytes)
        self.background: set[asyncio.Task[None]] = set()  # work that outlives its request; awaited at shutdown
        self.minimum_version = version(core.min_client_version)
        self._templates: dict[type, list[tuple[re.Pattern[str], str]]] = {}
        for pattern, handler, *_ in routes:
            self._templates.setdefault(handler, []).append((re.compile(pattern), template(pattern)))
        super().__init__(routes, default_handler_class=unknown)

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work that may outlive its request. The server waits for it before it stops."""
        task = asyncio.get_running_loop().create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    def route(self, handler: RequestHandler) -> str | None:
        """Return the route template of a handler, without the ids in the path. Returns None if no route matched."""
        templates = self._templates.get(type(handler), [])
        if len(templates) == 1:
            return templates[0][1]
        return next((shown for pattern, shown in templates if pattern.fullmatch(handler.request.path)), None)

    def log_request(self, handler: RequestHandler) -> None:
        """Log nothing: the proxy has an access log, and paths contain ids. Our log has the errors."""


def template(pattern: str) -> str:
    """Return a route's pattern with a name for each group: ``/chats/{id}/messages``."""
    return _GROUP.sub(lambda group: "{id}" if "0-9a-fA-F" in group[0] else "{name}", pattern)


def version(text: str | None) -> tuple[int, ...]:
    """Parse a version: ``1.2.0-beta`` is (1, 2). Returns () for anything else. Trailing zeros don't count."""
    match = _VERSION.match(text or "")
    parts = [int(part) for part in match.group().split(".")] if match else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
