"""Chats of all five types: participants, roles, invites, bans, views and typing (contract section 7)."""

from __future__ import annotations

from pydantic import Field

from config.avatars import AvatarSettings
from config.values import Rate, RateLimit
from handlers.http.base import ID
from handlers.sockets.socket import Event
from handlers.wire import chat_events
from handlers.wire.avatars import AvatarHosts
from handlers.wire.costs import POSTS
from handlers.wire.errors import Forbidden, NotFound
from models.chats import purge
from models.sweeps import Sweeper
from plugins import App, Every, Plugin
from plugins.chats import http, shapes
from plugins.chats.chats import Chats
from plugins.chats.invites import Invites
from plugins.chats.members import Members
from plugins.chats.requests import Requests
from plugins.chats.typing import Typing


class Settings(AvatarSettings):
    rate_limit_chats: RateLimit = Field(
        Rate(120, 3600), description="Chats that a user may create, or look up by the other person's name."
    )
    rate_limit_chat_changes: RateLimit = Field(
        Rate(120, 60),
        description="Changes of chats and roles per user. Each one is an event for everybody in the chat.",
    )
    rate_limit_chat_views: RateLimit = Field(
        Rate(600, 60),
        description="Changes of how a user sees chats (hidden, archived, muted, marked as unread), per user.",
    )
    rate_limit_participants: RateLimit = Field(Rate(2500, 3600), description="People that a user may add to chats.")
    rate_limit_join: RateLimit = Field(
        Rate(60, 3600), description="Attempts of a user to join through an invite, or to preview one."
    )


PURGE_SECONDS = 10.0  # of a run; the next one continues


def setup(app: App, settings: Settings) -> Plugin:
    purging = Sweeper(app.db, app.sweeps, purge.sweep(app.db))
    chats = Chats(app.db, app.hub, app.changes, AvatarHosts(settings.avatar_allowed_hosts))
    members = Members(app.db, app.changes)
    requests = Requests(app.db, app.hub, app.changes, app.alerts)
    invites = Invites(app.db, app.changes)
    typing = Typing(app.access, app.delivery)
    by_user = {"members": members, "rate": settings.rate_limit_participants}
    made = {"chats": chats, "rate": settings.rate_limit_chats, "people": settings.rate_limit_participants}
    answering = {"requests": requests, "chats": chats, "rate": settings.rate_limit_chat_views}
    joining = {"members": members, "chats": chats, "rate": settings.rate_limit_join}
    looking = {"invites": invites, "rate": settings.rate_limit_join}
    return Plugin(
        name="chats",
        guide="messaging.md#chats",
        routes=(
            ("/chats", http.ChatsHandler, made),
            ("/chats/join", http.JoinHandler, joining),
            ("/chats/requests/decline", http.DeclineHandler, answering),
            (f"/chats/{ID}/accept", http.AcceptHandler, answering),
            ("/chats/join/preview", http.JoinPreviewHandler, looking),
            (f"/chats/{ID}", http.ChatHandler, {"chats": chats, "rate": settings.rate_limit_chat_changes}),
            (f"/chats/{ID}/me", http.ChatViewHandler, {"chats": chats, "rate": settings.rate_limit_chat_views}),
            (f"/chats/{ID}/participants", http.ParticipantsHandler, by_user),
            (
                f"/chats/{ID}/participants/{ID}",
                http.ParticipantHandler,
                {"members": members, "rate": settings.rate_limit_chat_changes},
            ),
            (f"/chats/{ID}/bans", http.BansHandler, {"members": members}),
            (f"/chats/{ID}/bans/{ID}", http.BanHandler, {"members": members}),
            (f"/chats/{ID}/invites", http.InvitesHandler, {"invites": invites}),
            (f"/chats/{ID}/invites/{ID}", http.InviteHandler, {"invites": invites}),
        ),
        periodic=(Every(30, lambda: purging.run(PURGE_SECONDS), "deleted_chats"),),
        events={"typing": Event(shapes.Typing, typing.forward, cost=POSTS, refuses=(Forbidden, NotFound))},
        sends=(shapes.TypingFrame, *chat_events.OF_CHATS),
    )
