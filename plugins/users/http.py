"""The endpoints of ``/users`` that show and change profiles."""

from __future__ import annotations

from config.settings import Rate
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
        """Search users by a part of their public id; returns at most 50.

        An exact match comes first, then ids that begin with `q`, then ids that contain it.
        """
        await self.limit("search", self._rate, str(self.session.user_id))
        await self.reserve()
        self.reply(await self._users.search(self.session.user_id, query.q))


class Profile(ApiHandler):
    def initialize(self, users: Users) -> None:
        self._users = users

    @operation({200: UserProfile}, refuses=(NotFound,), cost=READS)
    async def get(self, public_id: UserRef) -> None:
        """Get a user's profile.

        Presence is `false` and `null` if it is hidden: by that user's `settings.privacy.last_seen`, or by a block.
        """
        self.reply(await self._users.profile(self.session.user_id, public_id))


class Me(ApiHandler):
    def initialize(self, users: Users, rate: Rate) -> None:
        self._users, self._rate = users, rate

    @operation({200: OwnProfile}, refuses=(NotFound,), cost=READS)
    async def get(self) -> None:
        """Get your own profile."""
        self.reply(await self._users.me(self.session.user_id))

    @operation({200: OwnProfile}, refuses=(NotFound,), cost=WRITES)
    async def put(self, body: ChangeMe) -> None:
        """Change your own profile: only the fields that are sent; null clears a field.

        `settings` are merged into the present ones, and so is `privacy` in them: a key that is not sent stays, a key
        that is sent as null is removed. The result may have at most 16 KiB of JSON.
        """
        self.reply(await self._users.change(self.session.user_id, body))

    @operation({204: None}, refuses=(InvalidCredentials,), limits={"rate_limit_delete": "address"}, cost=DEFENDS)
    async def delete(self, body: DeleteMe) -> None:
        """Delete your account, with its keys, sessions, files and reactions.

        Messages in groups and channels stay, without a sender.
        """
        await self.limit("delete-me", self._rate)
        await self._users.delete(self.session, body.password)
        self.reply_nothing()
