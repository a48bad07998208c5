"""Users: search, profiles and one's own (contract section 3)."""

from __future__ import annotations

from pydantic import Field

from config.settings import Items, Rate, RateLimit
from config.tiers import TierSettings
from handlers.shapes import USER
from plugins import App, Plugin
from plugins.users import http
from plugins.users.users import Users


class Settings(TierSettings):
    avatar_allowed_hosts: Items = Field((), description="Hosts an avatar_url may name; empty allows any https host.")
    rate_limit_search: RateLimit = Field(Rate(20, 60), description="Searches a user.")
    rate_limit_delete: RateLimit = Field(Rate(5, 900), description="Tries to delete an account, an address.")


def setup(app: App, settings: Settings) -> Plugin:
    users = Users(app.db, app.passwords, app.revocations, app.delivery, settings.avatar_allowed_hosts, settings.tiers)
    return Plugin(
        name="users",
        routes=(
            ("/users/search", http.Search, {"users": users, "rate": settings.rate_limit_search}),
            ("/users/me", http.Me, {"users": users, "rate": settings.rate_limit_delete}),
            (f"/users/{USER}", http.Profile, {"users": users}),
        ),
    )
