"""The endpoints of ``/users`` that show and change profiles."""

from __future__ import annotations

from config.values import Rate
from handlers.http.base import ApiHandler
from handlers.wire.costs import DEFENDS, READS, SEARCHES, WRITES
from handlers.wire.errors import InvalidCredentials, NotFound
from handlers.wire.operations import operation
from handlers.wire.shapes import UserRef
from plugins.users.shapes import ChangeMe, DeleteMe, OwnProfile, SearchQuery, UserProfile, UserSearchItem
from plugins.users.users import Users


class Search(ApiHandler):
    def initialize(self, users: Users, rate: Rate) -> None:
        self._users, self._rate = users, rate

    @operation({200: list[UserSearchItem]}, limits={"rate_limit_search": "user"}, cost=SEARCHES)
    async def get(self, query: SearchQuery) -> None:
        """Search users by a part of their public id, at most 50.

        The same public id first, then those that begin with `q`, then those that contain it.
        """
        await self.limit("search", self._rate, str(self.session.user_id))
        await self.reserve()
        self.reply(await self._users.search(self.session.user_id, query.q))


class Profile(ApiHandler):
    def initialize(self, users: Users) -> None:
        self._users = users

    @operation({200: UserProfile}, refuses=(NotFound,), cost=READS)
    async def get(self, public_id: UserRef) -> None:
        """Look at a user's profile.

        Presence is `false` and `null` where it is hidden: by that user's `settings.privacy.last_seen`, or by a block.
        """
        self.reply(await self._users.profile(self.session.user_id, public_id))


class Me(ApiHandler):
    def initialize(self, users: Users, rate: Rate) -> None:
        self._users, self._rate = users, rate

    @operation({200: OwnProfile}, refuses=(NotFound,), cost=READS)
    async def get(self) -> None:
        """Look at one's own profile."""
        self.reply(await self._users.me(self.session.user_id))

    @operation({200: OwnProfile}, refuses=(NotFound,), cost=WRITES)
    async def put(self, body: ChangeMe) -> None:
        """Change one's own profile: only the fields that are sent; null clears.

        `settings` are merged into what is there, and so is `privacy` in them: a key that is not sent stays, one that is
        sent as null goes. What comes of it may have 16 KiB of JSON.
        """
        self.reply(await self._users.change(self.session.user_id, body))

    @operation({204: None}, refuses=(InvalidCredentials,), limits={"rate_limit_delete": "address"}, cost=DEFENDS)
    async def delete(self, body: DeleteMe) -> None:
        """Erase one's account, with its keys, sessions, files and reactions.

        Messages in chats of many stay, without a sender.
        """
        await self.limit("delete-me", self._rate)
        await self._users.delete(self.session, body.password)
        self.reply_nothing()
