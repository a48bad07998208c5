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

        Here and in the other routes below `/users`, `{public_id}` may also be a `user_id` in its form of 36 characters.
        Anything else is a public id.

        Presence is `false` and `null` where it is hidden: by that user's `settings.privacy.last_seen`, or by a block
        between the two.
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

        An empty string in `display_name`, `bio`, `avatar_url` or `language` counts as null.

        `settings` are merged into what is there, so that two devices, or an older app, lose nothing of what others
        wrote: a key that is not sent stays, one that is null is removed. The same holds for the keys of `privacy`; all
        other values are replaced. `settings: null` removes all. What comes of it has at most 16 KiB of JSON.
        """
        self.reply(await self._users.change(self.session.user_id, body))

    @operation({204: None}, refuses=(InvalidCredentials,), limits={"rate_limit_delete": "address"}, cost=DEFENDS)
    async def delete(self, body: DeleteMe) -> None:
        """Erase one's account, with its keys, sessions, verifications, blocks, reactions, receipts and files.

        It leaves its chats: a chat that it owned goes to the admin who joined first, and has no owner when there is
        none; a chat in which no one is left is deleted. Its messages stay with the others, with `sender_id` null;
        calls stay in their history, without its name.
        """
        await self.limit("delete-me", self._rate)
        await self._users.delete(self.session, body.password)
        self.reply_nothing()
