"""Prekeys: bundles to start a Signal session with, and their owner's supply (contract section 3)."""

from __future__ import annotations

from pydantic import Field

from config.signal import SignalSettings
from config.values import Rate, RateLimit
from handlers.wire.shapes import USER
from plugins import App, Plugin
from plugins.prekeys import http
from plugins.prekeys.prekeys import Prekeys
from plugins.prekeys.shapes import PrekeysLow


class Settings(SignalSettings):
    rate_limit_bundle: RateLimit = Field(
        Rate(6, 3600), description="Key bundles of one user that another user may fetch."
    )
    rate_limit_bundles: RateLimit = Field(
        Rate(60, 600), description="Key bundles of all users together that a user may fetch."
    )
    rate_limit_prekey_upload: RateLimit = Field(Rate(60, 3600), description="Uploads of prekeys per user.")


def setup(app: App, settings: Settings) -> Plugin:
    prekeys = Prekeys(
        app.db,
        app.hub,
        app.alerts,
        app.limits,
        settings.rate_limit_bundle,
        settings.rate_limit_bundles,
        libsignal=settings.libsignal,
    )
    return Plugin(
        name="prekeys",
        guide="messaging.md#encryption",
        routes=(
            ("/users/me/prekeys", http.Supply, {"prekeys": prekeys, "rate": settings.rate_limit_prekey_upload}),
            (f"/users/{USER}/prekeys", http.Bundle, {"prekeys": prekeys}),
        ),
        sends=(PrekeysLow,),
        welcome=prekeys.greet,
    )
