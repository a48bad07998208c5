"""The endpoints of ``/calls``."""

from __future__ import annotations

from uuid import UUID

from handlers.http.base import ApiHandler
from handlers.http.pages import PAGED, PageQuery, reply_page
from handlers.wire.costs import READS
from handlers.wire.errors import NotFound
from handlers.wire.operations import Answer, operation
from plugins.calls.history import History
from plugins.calls.shapes import CallSession


class Calls(ApiHandler):
    def initialize(self, history: History) -> None:
        self._history = history

    @operation({200: Answer(list[CallSession], headers=PAGED)}, cost=READS)
    async def get(self, query: PageQuery) -> None:
        """List your calls, the newest first."""
        await self.reserve()
        entries = await self._history.calls(self.session.user_id, query.limit + 1, query.cursor)
        reply_page(self, query, entries, "created_at", "id")


class Call(ApiHandler):
    def initialize(self, history: History) -> None:
        self._history = history

    @operation({200: CallSession}, refuses=(NotFound,), cost=READS)
    async def get(self, call_id: UUID) -> None:
        """Get one of your calls."""
        entry = await self._history.call(self.session.user_id, call_id)
        if entry is None:
            raise NotFound("There is no such call.")
        self.reply(entry)
