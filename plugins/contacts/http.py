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
        """Mark a user as verified, after you compared fingerprints; again replaces. Yourself is 400."""
        self.reply(await self._contacts.verify(self.session.user_id, public_id, body))

    @operation({204: None}, refuses=(NotFound,), cost=UPDATES)
    async def delete(self, public_id: UserRef) -> None:
        """Take back a verification; 404 if there is none."""
        await self._contacts.unverify(self.session.user_id, public_id)
        self.reply_nothing()


class Verifications(_Contacts):
    @operation({200: Answer(list[Verified], headers=PAGED)}, cost=READS)
    async def get(self, query: PageQuery) -> None:
        """List your verifications, the latest first."""
        await self.reserve()
        entries = await self._contacts.verifications(self.session.user_id, query.limit + 1, query.cursor)
        reply_page(self, query, entries, "verified_at", "id")


class Block(_Contacts):
    @operation({204: None}, refuses=(NotFound, Conflict), cost=WRITES)
    async def put(self, public_id: UserRef) -> None:
        """Block a user, who is not notified; again changes nothing.

        A call of the blocked user rings for them and nowhere else until it is missed, and is not in your history.
        Neither of you sees the other's presence. In direct and secret chats that you have accepted, neither of you can
        post, edit or react. You do not see any other chat of the two of you, and for the blocked user it works like a
        chat that is not answered. Chats of many go on as before, but you are only invited into new ones in which the
        blocked user is. Profiles and bundles are not hidden.

        Yourself is 400; more than 10,000 blocks are `conflict`.
        """
        await self._contacts.block(self.session.user_id, public_id)
        self.reply_nothing()

    @operation({204: None}, refuses=(NotFound,), cost=UPDATES)
    async def delete(self, public_id: UserRef) -> None:
        """Take back a block, if there is one."""
        await self._contacts.unblock(self.session.user_id, public_id)
        self.reply_nothing()


class Blocks(_Contacts):
    @operation({200: Answer(list[Blocked], headers=PAGED)}, cost=READS)
    async def get(self, query: PageQuery) -> None:
        """List the users you have blocked, the latest first."""
        await self.reserve()
        entries = await self._contacts.blocks(self.session.user_id, query.limit + 1, query.cursor)
        reply_page(self, query, entries, "blocked_at", "user_id")
