"""Calls: signalling frames, the state of each call, and the history (contract section 6)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from pydantic import ByteSize, Field

from config.settings import Section
from config.values import Rate, RateLimit
from handlers.sockets.socket import Event
from handlers.wire.costs import READS, UPDATES, WRITES
from models.calls import sweeps
from models.sweeps import Sweeper
from plugins import App, Every, Plugin
from plugins.calls import frames, http, shapes
from plugins.calls.calls import CHANNEL, Calls
from plugins.calls.candidates import Candidates
from plugins.calls.history import History
from plugins.calls.pending import PendingOffers
from plugins.calls.refusals import OF_A_CALL, CallIdConflict, CannotCallSelf, Glare, UserNotFound
from plugins.calls.tally import Tally

SWEEP_SECONDS = 10.0  # of a run; the next one continues


class Settings(Section):
    rate_limit_offers: RateLimit = Field(
        Rate(60, 600), description="Calls that a user may start. Each one leaves a row."
    )
    call_waiting_bytes: ByteSize = Field(
        ByteSize(32 << 20),
        ge=1 << 20,
        description="Bytes of call frames that may begin to wait in Redis in a minute, for all users together; "
        "Redis holds at most twice as much. A call needs about 30 KiB. Above it calls still ring, but "
        "not on devices that come online later. Raise it if you have the memory and many calls.",
    )


def setup(app: App, settings: Settings) -> Plugin:
    pending = PendingOffers(app.db, app.redis, app.hub, settings.call_waiting_bytes)
    candidates = Candidates(app.db, app.hub, pending, app.limits)
    calls = Calls(
        app.db,
        app.hub,
        app.bus,
        app.alerts,
        pending,
        candidates,
        app.limits,
        settings.rate_limit_offers,
        Tally(app.metrics),
    )
    history = History(app.db)
    ending = Sweeper(app.db, app.sweeps, *sweeps(app.db, calls.end_overdue))

    async def sweep() -> None:
        try:
            await ending.run(SWEEP_SECONDS)
        finally:
            calls.forget_stale()

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await app.bus.subscribe(CHANNEL, calls.receive)
        async with pending.running():
            try:
                yield
            finally:
                await calls.stop()

    return Plugin(
        name="calls",
        guide="calls.md",
        routes=(
            ("/calls", http.Calls, {"history": history}),
            ("/calls/([0-9a-fA-F-]{36})", http.Call, {"history": history}),
        ),
        events={
            "call_offer": Event(
                shapes.Offer,
                calls.offer,
                cost=WRITES,
                refuses=(UserNotFound, CannotCallSelf, Glare, CallIdConflict),
                limits={"rate_limit_offers": "user"},
            ),
            "call_answer": Event(shapes.Answer, calls.answer, cost=UPDATES, refuses=OF_A_CALL),
            "ice_candidate": Event(shapes.Candidate, candidates.forward, cost=READS, refuses=OF_A_CALL),
            "call_hangup": Event(shapes.Hangup, calls.hangup, cost=UPDATES, refuses=OF_A_CALL),
            "call_heartbeat": Event(shapes.Heartbeat, calls.heartbeat, cost=UPDATES, refuses=OF_A_CALL),
        },
        sends=frames.SENT,
        # From the seed. The instance that received an offer times its ring; the sweep is for instances that died.
        periodic=(Every(30, sweep, "call_timeouts"),),
        lifespan=lifespan,
        welcome=pending.greet,
    )
