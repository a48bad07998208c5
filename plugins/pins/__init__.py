"""Pins: messages that a chat keeps at hand for everybody in it."""

from __future__ import annotations

from pydantic import Field

from config.settings import Section
from config.values import Rate, RateLimit
from handlers.http.base import ID
from handlers.wire.chat_events import PinEvent
from plugins import App, Plugin
from plugins.pins import http
from plugins.pins.pins import Pins


class Settings(Section):
    rate_limit_pins: RateLimit = Field(Rate(120, 60), description="Messages pinned and unpinned per user.")


def setup(app: App, settings: Settings) -> Plugin:
    by_user = {"pins": Pins(app.db, app.changes), "rate": settings.rate_limit_pins}
    return Plugin(
        name="pins",
        guide="messaging.md#pinned-messages",
        routes=((f"/chats/{ID}/pins", http.PinsHandler, by_user), (f"/messages/{ID}/pin", http.PinHandler, by_user)),
        sends=(PinEvent,),
    )
