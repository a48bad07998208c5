"""Users: search, profiles, and your own account (contract section 3)."""

from __future__ import annotations

from pydantic import Field

from config.avatars import AvatarSettings
from config.tiers import TierSettings
from config.values import Rate, RateLimit
from handlers.wire.shapes import USER
from plugins import App, Plugin
from plugins.users import http
from plugins.users.users import Users


class Settings(AvatarSettings, TierSettings):
    rate_limit_search: RateLimit = Field(Rate(20, 60), description="Searches per user.")
    rate_limit_delete: RateLimit = Field(Rate(5, 900), description="Attempts per IP address to delete an account.")


def setup(app: App, settings: Settings) -> Plugin:
    users = Users(
        app.db,
        app.passwords,
        app.revocations,
        app.changes,
        app.alerts,
        settings.avatar_allowed_hosts,
        settings.tiers,
    )
    return Plugin(
        name="users",
        guide="clients.md",
        routes=(
            ("/users/search", http.Search, {"users": users, "rate": settings.rate_limit_search}),
            ("/users/me", http.Me, {"users": users, "rate": settings.rate_limit_delete}),
            (f"/users/{USER}", http.Profile, {"users": users}),
        ),
    )
