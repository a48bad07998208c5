"""The endpoints of ``/calls``."""

from __future__ import annotations

from uuid import UUID

from handlers.base import ApiHandler
from handlers.errors import NotFound
from handlers.pages import PageQuery, reply_page
from plugins.calls.history import History


class Calls(ApiHandler):
    def initialize(self, history: History) -> None:
        self._history = history

    async def get(self) -> None:
        """200 list of CallSession, newest first, with a Link to the next page; 400."""
        query = self.query(PageQuery)
        entries = await self._history.calls(self.session.user_id, query.limit + 1, query.place)
        reply_page(self, query, entries, "created_at", "id")


class Call(ApiHandler):
    def initialize(self, history: History) -> None:
        self._history = history

    async def get(self, call_id: str) -> None:
        """200 CallSession; 404 also for a call of others."""
        try:
            entry = await self._history.call(self.session.user_id, UUID(call_id))
        except ValueError:
            entry = None
        if entry is None:
            raise NotFound("There is no such call.")
        self.reply(entry)
