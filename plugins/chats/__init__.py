"""Chats of all five types: who takes part, roles, invites, and who is typing (contract section 7)."""

from __future__ import annotations

from pydantic import Field

from config.settings import Rate, RateLimit, Section
from handlers.base import ID
from handlers.socket import Event
from plugins import App, Every, Plugin
from plugins.chats import http, shapes
from plugins.chats.chats import Chats
from plugins.chats.invites import Invites
from plugins.chats.typing import Typing


class Settings(Section):
    rate_limit_chats: RateLimit = Field(Rate(120, 3600), description="Chats a user may make.")
    rate_limit_participants: RateLimit = Field(Rate(2500, 3600), description="People a user may bring into chats.")
    rate_limit_join: RateLimit = Field(Rate(60, 3600), description="Tries of a user to join by an invite.")


def setup(app: App, settings: Settings) -> Plugin:
    chats = Chats(app.db, app.delivery)
    invites = Invites(app.db, chats)
    typing = Typing(app.access, app.delivery)
    return Plugin(
        name="chats",
        routes=(
            (
                "/chats",
                http.ChatsHandler,
                {"chats": chats, "rate": settings.rate_limit_chats, "people": settings.rate_limit_participants},
            ),
            ("/chats/join", http.JoinHandler, {"chats": chats, "rate": settings.rate_limit_join}),
            (f"/chats/{ID}", http.ChatHandler, {"chats": chats}),
            (
                f"/chats/{ID}/participants",
                http.ParticipantsHandler,
                {"chats": chats, "rate": settings.rate_limit_participants},
            ),
            (f"/chats/{ID}/participants/{ID}", http.ParticipantHandler, {"chats": chats}),
            (f"/chats/{ID}/invites", http.InvitesHandler, {"invites": invites}),
            (f"/chats/{ID}/invites/{ID}", http.InviteHandler, {"invites": invites}),
        ),
        periodic=(Every(30, chats.purge, "deleted_chats"),),
        events={"typing": Event(shapes.Typing, typing.typing)},
    )
