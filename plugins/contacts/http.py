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
        """Mark a user as verified, after comparing fingerprints; again replaces. Oneself is 400."""
        self.reply(await self._contacts.verify(self.session.user_id, public_id, body))

    @operation({204: None}, refuses=(NotFound,), cost=UPDATES)
    async def delete(self, public_id: UserRef) -> None:
        """Take a verification back; 404 also when there is none."""
        await self._contacts.unverify(self.session.user_id, public_id)
        self.reply_nothing()


class Verifications(_Contacts):
    @operation({200: Answer(list[Verified], headers=PAGED)}, cost=READS)
    async def get(self, query: PageQuery) -> None:
        """List one's verifications, the latest first."""
        await self.reserve()
        entries = await self._contacts.verifications(self.session.user_id, query.limit + 1, query.place)
        reply_page(self, query, entries, "verified_at", "id")


class Block(_Contacts):
    @operation({204: None}, refuses=(NotFound, Conflict), cost=WRITES)
    async def put(self, public_id: UserRef) -> None:
        """Block a user, who is not notified; again changes nothing.

        A call of the blocked user rings for them and nowhere else, until it is missed, and is not in the history of who
        blocked them; neither sees the other's presence. In direct and secret chats that the blocker has accepted
        neither may post, edit or react. All other chats of the two are not shown to the blocker, and work for the
        blocked user like chats that are not answered. Chats of many go on as before; the blocker is invited into new
        ones where the blocked user is. Profiles and bundles are not hidden.

        Oneself is 400; more than 10,000 blocks are `conflict`.
        """
        await self._contacts.block(self.session.user_id, public_id)
        self.reply_nothing()

    @operation({204: None}, refuses=(NotFound,), cost=UPDATES)
    async def delete(self, public_id: UserRef) -> None:
        """Take a block back, also where there was none."""
        await self._contacts.unblock(self.session.user_id, public_id)
        self.reply_nothing()


class Blocks(_Contacts):
    @operation({200: Answer(list[Blocked], headers=PAGED)}, cost=READS)
    async def get(self, query: PageQuery) -> None:
        """List whom one has blocked, the latest first."""
        await self.reserve()
        entries = await self._contacts.blocks(self.session.user_id, query.limit + 1, query.place)
        reply_page(self, query, entries, "blocked_at", "user_id")
