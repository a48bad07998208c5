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
        """Search users by a part of their public id; returns at most 50.

        An equal public id comes first, then those that begin with `q`, then those that contain it.
        """
        await self.limit("search", self._rate, str(self.session.user_id))
        await self.reserve()
        self.reply(await self._users.search(self.session.user_id, query.q))


class Profile(ApiHandler):
    def initialize(self, users: Users) -> None:
        self._users = users

    @operation({200: UserProfile}, refuses=(NotFound,), cost=READS)
    async def get(self, public_id: UserRef) -> None:
        """Get the profile of a user.

        Here and in the other routes below `/users`, `{public_id}` may also be a `user_id` in its form of 36 characters.
        Anything else is a public id.

        Presence is `false` and null where it is hidden: by that user's `settings.privacy.last_seen`, or by a block
        between the two of you.
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
        """Change your own profile: only the fields that you send; null clears.

        An empty string in `display_name`, `bio`, `avatar_url` or `language` counts as null.

        The server merges `settings` into what is there, so that two devices, or an older app, keep each other's: a key
        that you do not send stays, a null removes it. The same holds for the keys of `privacy`; other values are
        replaced. `settings: null` removes all. The result has at most 16 KiB of JSON.
        """
        self.reply(await self._users.change(self.session.user_id, body))

    @operation({204: None}, refuses=(InvalidCredentials,), limits={"rate_limit_delete": "address"}, cost=DEFENDS)
    async def delete(self, body: DeleteMe) -> None:
        """Delete your account, with its keys, sessions, verifications, blocks, reactions, receipts and files.

        The account leaves its chats. A chat that it owned goes to the admin who joined first, or has no owner if there
        is none; a chat without participants is deleted. The account's messages stay, with `sender_id` null; calls stay
        in the other users' histories, without its name.
        """
        await self.limit("delete-me", self._rate)
        await self._users.delete(self.session, body.password)
        self.reply_nothing()
