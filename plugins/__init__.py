"""Features: each folder (or file) here is one. Its ``setup(app, settings)`` returns a Plugin.

A folder is all that registers a feature. Each has a section of settings, ``Settings``. No feature imports another.
"""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from uuid import UUID

import structlog
from redis.asyncio import Redis
from tornado.ioloop import PeriodicCallback

from config.keyring import KeyringFile
from config.settings import Core
from config.traces import Traces
from handlers.alerts import Alerts
from handlers.http.base import ApiHandler
from handlers.http.site import Check
from handlers.limits.ledger import Ledger
from handlers.limits.rates import Limits
from handlers.metrics import Metrics
from handlers.passwords import Passwords
from handlers.revocations import Revocations
from handlers.sockets.announcing import Announcer
from handlers.sockets.bus import Bus
from handlers.sockets.delivery import Delivery
from handlers.sockets.hub import Hub, Peer
from handlers.sockets.socket import Event
from handlers.tokens import Tokens
from handlers.vitals import Runs
from handlers.wire.frames import by_kind
from models.chats.access import Access
from models.chats.changes import ChatChanges
from models.database import Database
from models.postgres.epochs import Epoch
from models.sweeps import Watch as SweepWatch

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class App:
    """The resources that features share. They know nothing of the features."""

    core: Core
    db: Database
    epoch: Epoch
    redis: Redis
    bus: Bus
    hub: Hub
    access: Access
    delivery: Delivery
    alerts: Alerts
    tokens: Tokens
    keyrings: KeyringFile
    limits: Limits
    ledger: Ledger
    passwords: Passwords
    revocations: Revocations
    metrics: Metrics
    sweeps: SweepWatch
    traces: Traces
    instance_id: UUID

    @property
    def changes(self) -> ChatChanges:
        """Opens chats for changes, and announces the events of a change after its commit."""
        return ChatChanges(self.db, Announcer(self.delivery, self.hub).announce)


Route = tuple[str, type[ApiHandler], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Every:
    """A periodic task. It runs once at a time; a failed run is logged and counted, and does not stop later ones."""

    seconds: float
    task: Callable[[], Awaitable[object]]
    name: str


class Timer:
    """Runs an Every. Tornado's PeriodicCallback skips overlaps, but its stop() does not wait for a run in progress."""

    def __init__(self, every: Every, runs: Runs) -> None:
        self._every = every
        self._runs = runs
        self._idle = asyncio.Event()
        self._idle.set()
        # In milliseconds. Jitter, so that instances that started together don't run their tasks together.
        self._callback = PeriodicCallback(self._run, every.seconds * 1000, jitter=0.1)

    def start(self) -> None:
        self._runs.planned(self._every.name, self._every.seconds)
        self._callback.start()

    async def stop(self) -> None:
        """Start no more runs, and wait for the one in progress."""
        self._callback.stop()
        await self._idle.wait()

    async def _run(self) -> None:
        self._idle.clear()
        outcome, began = "failed", time.monotonic()
        try:
            await self._every.task()
            outcome = "done"
        except Exception as error:
            log.error("periodic_failed", task=self._every.name, exc_info=error)
        finally:
            self._runs.ended(self._every.name, outcome, time.monotonic() - began)
            self._idle.set()


@dataclass(frozen=True, slots=True)
class Plugin:
    """The parts of a feature. ``guide`` is its page for client developers, in docs/; ``sends`` has the types of frames
    that it sends (handlers/wire/frames.py); ``welcome`` is called with each socket that opens, after ``ready``."""

    name: str
    guide: str = ""
    routes: tuple[Route, ...] = ()
    events: Mapping[str, Event] = field(default_factory=dict)
    sends: tuple[type, ...] = ()
    periodic: tuple[Every, ...] = ()
    checks: Mapping[str, Check] = field(default_factory=dict)
    lifespan: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext
    welcome: Callable[[Peer], Awaitable[None]] | None = None


class Clash(Exception):
    """Two features claim the same route, event, frame or check."""


def discover(disabled: Collection[str] = ()) -> dict[str, ModuleType]:
    """Return the modules of all features by name, without the disabled ones. Raises LookupError if ``disabled`` has a
    name that is no feature."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    unknown = set(disabled) - set(names)
    if unknown:
        raise LookupError(
            f"PLUGINS_DISABLED names no feature: {', '.join(sorted(unknown))}; there are {', '.join(names)}"
        )
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names if name not in disabled}


def joined(
    features: Collection[Plugin],
) -> tuple[list[Route], dict[str, Event], dict[str, type], dict[str, Check]]:
    """Return the routes, events, frames and checks of all features. Raises Clash."""
    claims: dict[tuple[str, str], str] = {}
    routes: list[Route] = []
    events: dict[str, Event] = {}
    sends: dict[str, type] = {}
    checks: dict[str, Check] = {}
    for feature in features:
        claimed = [("route", pattern) for pattern, _, _ in feature.routes]
        claimed += [("event", kind) for kind in feature.events] + [("check", name) for name in feature.checks]
        claimed += [("frame", kind) for kind in by_kind(feature.sends)]
        for claim in claimed:
            if claim in claims:
                raise Clash(f"{feature.name} and {claims[claim]} both claim the {claim[0]} {claim[1]}")
            claims[claim] = feature.name
        routes += feature.routes
        events.update(feature.events)
        sends.update(by_kind(feature.sends))
        checks.update(feature.checks)
    return routes, events, sends, checks
