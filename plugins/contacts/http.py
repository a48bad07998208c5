"""The endpoints of contacts."""

from __future__ import annotations

from handlers.http.base import ApiHandler
from handlers.http.pages import PAGED, PageQuery, reply_page
from handlers.wire.costs import READS, UPDATES, WRITES
from handlers.wire.errors import Conflict, NotFound
from handlers.wire.operations import Answer, operation
from handlers.wire.shapes import UserRef
from plugins.contacts.contacts import Contacts, FingerprintMismatch
from plugins.contacts.shapes import Blocked, Verification, Verified


class _Contacts(ApiHandler):
    def initialize(self, contacts: Contacts) -> None:
        self._contacts = contacts


class Verify(_Contacts):
    @operation({200: Verified}, refuses=(NotFound, FingerprintMismatch), cost=WRITES)
    async def post(self, public_id: UserRef, body: Verification) -> None:
        """Mark a user as verified, after comparing fingerprints. Replaces an earlier verification."""
        self.reply(await self._contacts.verify(self.session.user_id, public_id, body))

    @operation({204: None}, refuses=(NotFound,), cost=UPDATES)
    async def delete(self, public_id: UserRef) -> None:
        """Delete a verification."""
        await self._contacts.unverify(self.session.user_id, public_id)
        self.reply_nothing()


class Verifications(_Contacts):
    @operation({200: Answer(list[Verified], headers=PAGED)}, cost=READS)
    async def get(self, query: PageQuery) -> None:
        """List your verifications, the latest first."""
        await self.reserve()
        entries = await self._contacts.verifications(self.session.user_id, query.limit + 1, query.place)
        reply_page(self, query, entries, "verified_at", "id")


class Block(_Contacts):
    @operation({204: None}, refuses=(NotFound, Conflict), cost=WRITES)
    async def put(self, public_id: UserRef) -> None:
        """Block a user without notifying them. Blocking again changes nothing.

        You don't receive their calls, and neither of you sees the other's presence. In direct and secret chats that you
        have accepted, neither of you can post, edit or react. Other chats of you two, present and future, are hidden
        from you. To the blocked user their calls and these chats look as if you don't answer.
        """
        await self._contacts.block(self.session.user_id, public_id)
        self.reply_nothing()

    @operation({204: None}, refuses=(NotFound,), cost=UPDATES)
    async def delete(self, public_id: UserRef) -> None:
        """Unblock a user. Does nothing if they are not blocked."""
        await self._contacts.unblock(self.session.user_id, public_id)
        self.reply_nothing()


class Blocks(_Contacts):
    @operation({200: Answer(list[Blocked], headers=PAGED)}, cost=READS)
    async def get(self, query: PageQuery) -> None:
        """List the users that you have blocked, the latest first."""
        await self.reserve()
        entries = await self._contacts.blocks(self.session.user_id, query.limit + 1, query.place)
        reply_page(self, query, entries, "blocked_at", "user_id")
