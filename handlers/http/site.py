"""The site: the Tornado application, with what every handler needs."""

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

Check = Callable[[], Awaitable[None]]  # raises when the thing is not well

_GROUP = re.compile(r"\((?:[^()]|\([^()]*\))*\)")
_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}")


class Site(Application):
    """What is the same for all handlers, and nothing that a single feature does."""

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
        self.outages = outages  # the exceptions that mean "a service is away", answered with 503
        self.active = 0  # requests being answered
        self.pace = Pace()  # of all uploads together
        self.compressor = Compressor()
        self.answers = AnswerMemory(core.answer_bytes)
        self.background: set[asyncio.Task[None]] = set()  # work that outlives its request; awaited at the end
        self.minimum_version = version(core.min_client_version)
        self._templates: dict[type, list[tuple[re.Pattern[str], str]]] = {}
        for pattern, handler, *_ in routes:
            self._templates.setdefault(handler, []).append((re.compile(pattern), template(pattern)))
        super().__init__(routes, default_handler_class=unknown)

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work that may outlive its request, and that a server waits for before it stops."""
        task = asyncio.get_running_loop().create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    def route(self, handler: RequestHandler) -> str | None:
        """The route that led to a handler, without what the address has in it; None when none did."""
        templates = self._templates.get(type(handler), [])
        if len(templates) == 1:
            return templates[0][1]
        return next((shown for pattern, shown in templates if pattern.fullmatch(handler.request.path)), None)

    def log_request(self, handler: RequestHandler) -> None:
        """A line for each request belongs to the proxy's access log, and paths bear ids; ours tells what went wrong."""


def template(pattern: str) -> str:
    """A route's pattern with a word for each of its groups: ``/chats/{id}/messages``."""
    return _GROUP.sub(lambda group: "{id}" if "0-9a-fA-F" in group[0] else "{name}", pattern)


def version(text: str | None) -> tuple[int, ...]:
    """``1.2.0-beta`` as (1, 2); () for what is not a version. Trailing zeros don't count."""
    match = _VERSION.match(text or "")
    parts = [int(part) for part in match.group().split(".")] if match else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
