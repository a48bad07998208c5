"""The endpoints of contacts."""

from __future__ import annotations

from handlers.base import ApiHandler
from handlers.pages import PageQuery, reply_page
from plugins.contacts.contacts import Contacts
from plugins.contacts.shapes import Verification


class _Contacts(ApiHandler):
    def initialize(self, contacts: Contacts) -> None:
        self._contacts = contacts


class Verify(_Contacts):
    async def post(self, public_id: str) -> None:
        """200 the verification; 404, 409 ``fingerprint_mismatch``, 400."""
        self.reply(await self._contacts.verify(self.session.user_id, public_id, self.body(Verification)))

    async def delete(self, public_id: str) -> None:
        """204; 404."""
        await self._contacts.unverify(self.session.user_id, public_id)
        self.reply_nothing()


class Verifications(_Contacts):
    async def get(self) -> None:
        """200 list of verifications, the latest first, with a Link to the next page; 400."""
        query = self.query(PageQuery)
        entries = await self._contacts.verifications(self.session.user_id, query.limit + 1, query.place)
        reply_page(self, query, entries, "verified_at", "id")


class Block(_Contacts):
    async def put(self, public_id: str) -> None:
        """204; 404, 409."""
        await self._contacts.block(self.session.user_id, public_id)
        self.reply_nothing()

    async def delete(self, public_id: str) -> None:
        """204; 404."""
        await self._contacts.unblock(self.session.user_id, public_id)
        self.reply_nothing()


class Blocks(_Contacts):
    async def get(self) -> None:
        """200 list of blocked users, the latest first, with a Link to the next page; 400."""
        query = self.query(PageQuery)
        entries = await self._contacts.blocks(self.session.user_id, query.limit + 1, query.place)
        reply_page(self, query, entries, "blocked_at", "user_id")
