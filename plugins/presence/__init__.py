"""Presence: who is online, kept true over all instances (contract sections 3 and 7)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from pydantic import Field

from config.settings import Section
from config.values import Rate, RateLimit
from handlers.sockets.socket import Event
from handlers.wire.costs import READS
from plugins import App, Every, Plugin
from plugins.presence.presence import Presence
from plugins.presence.subscriptions import (
    NEWS_CHANNEL,
    VISIBILITY_CHANNEL,
    PresenceFrame,
    PresenceSubscriptions,
    Subscribe,
)


class Settings(Section):
    rate_limit_presence: RateLimit = Field(
        Rate(60, 60), description="Lists of people to watch (presence_subscribe) per user."
    )


def setup(app: App, settings: Settings) -> Plugin:
    subscriptions = PresenceSubscriptions(
        app.db, app.bus, app.limits, settings.rate_limit_presence, app.metrics, app.instance_id
    )
    presence = Presence(app.db, app.hub, app.alerts, subscriptions.announce, app.sweeps)
    app.alerts.visibility = subscriptions.refresh

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await app.bus.subscribe(NEWS_CHANNEL, subscriptions.receive)
        await app.bus.subscribe(VISIBILITY_CHANNEL, subscriptions.receive_views)
        async with presence.lifespan(), subscriptions.running():
            yield

    return Plugin(
        name="presence",
        guide="messaging.md#presence",
        events={
            "presence_subscribe": Event(
                Subscribe, subscriptions.subscribe, cost=READS, limits={"rate_limit_presence": "user"}
            )
        },
        sends=(PresenceFrame,),
        periodic=(Every(10, presence.beat, "presence"), Every(30, subscriptions.forget_closed, "presence_watchers")),
        lifespan=lifespan,
    )
