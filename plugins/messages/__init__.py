"""Messages: posted once, in one order for all, sent after the commit, caught up by ``/sync`` (contract section 7)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from pydantic import Field

from config.retention import Retention
from config.values import Rate, RateLimit
from handlers.http.base import ID
from handlers.sockets.socket import Event
from handlers.wire import chat_events
from handlers.wire.costs import POSTS
from handlers.wire.errors import Conflict, Forbidden, NotFound
from plugins import App, Every, Plugin
from plugins.messages import http, shapes
from plugins.messages.journal import Journal
from plugins.messages.marks import Marks
from plugins.messages.messages import Messages
from plugins.messages.receipts import Receipts
from plugins.messages.sealed import Inboxes
from plugins.messages.sync import Sync


class Settings(Retention):
    rate_limit_messages: RateLimit = Field(
        Rate(1200, 60),
        description="Messages, edits, deletions and reactions per user over HTTP. On a socket they count as frames.",
    )
    rate_limit_receipts: RateLimit = Field(Rate(1200, 60), description="Receipts per user.")
    rate_limit_sync: RateLimit = Field(Rate(600, 60), description="Pages of /sync per user.")
    rate_limit_sealed: RateLimit = Field(
        Rate(120, 60), description="Sealed messages per IP address; their senders are unknown."
    )
    rate_limit_sealed_inbox: RateLimit = Field(Rate(600, 60), description="Sealed messages to the inbox of one user.")


def setup(app: App, settings: Settings) -> Plugin:
    journal = Journal(app.db, app.access, app.delivery, app.alerts, app.metrics, app.traces)
    messages = Messages(app.db, app.access, app.changes, journal, app.sweeps)
    marks = Marks(app.db, app.hub, app.bus)
    receipts = Receipts(app.db, app.hub, app.changes, marks)
    inboxes = Inboxes(app.db, app.access, journal, app.limits, settings.rate_limit_sealed_inbox)
    sync = Sync(app.db, app.alerts, settings.sync_retention_days)
    by_user = {"messages": messages, "rate": settings.rate_limit_messages}

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with journal.running(), marks.running():
            yield

    return Plugin(
        name="messages",
        guide="messaging.md",
        routes=(
            (f"/chats/{ID}/messages", http.ChatMessages, by_user),
            (f"/chats/{ID}/receipts", http.Receipt, {"receipts": receipts, "rate": settings.rate_limit_receipts}),
            ("/messages/sealed", http.SealedMessages, {"inboxes": inboxes, "rate": settings.rate_limit_sealed}),
            (f"/messages/{ID}", http.OneMessage, by_user),
            (f"/messages/{ID}/reads", http.Reads, {"receipts": receipts}),
            (f"/messages/{ID}/reactions/([^/]+)", http.Reaction, by_user),
            ("/sync", http.SyncPage, {"sync": sync, "rate": settings.rate_limit_sync}),
        ),
        events={"message_send": Event(shapes.Send, messages.send, cost=POSTS, refuses=(Forbidden, NotFound, Conflict))},
        sends=(shapes.Receipts, *chat_events.OF_MESSAGES),
        # Contract section 7: erased within 15 s of the time.
        periodic=(Every(5, messages.expire, "message_expiry"),),
        lifespan=lifespan,
    )
