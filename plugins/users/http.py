"""The endpoints of ``/users`` that show and change profiles."""

from __future__ import annotations

from config.settings import Rate
from handlers.base import ApiHandler
from plugins.users.shapes import ChangeMe, DeleteMe, SearchQuery
from plugins.users.users import Users


class Search(ApiHandler):
    def initialize(self, users: Users, rate: Rate) -> None:
        self._users, self._rate = users, rate

    async def get(self) -> None:
        """200 list of UserSearchItem; 400, 429."""
        query = self.query(SearchQuery)
        await self.limit("search", self._rate, str(self.session.user_id))
        self.reply(await self._users.search(self.session.user_id, query.q))


class Profile(ApiHandler):
    def initialize(self, users: Users) -> None:
        self._users = users

    async def get(self, public_id: str) -> None:
        """200 UserProfile; 404."""
        self.reply(await self._users.profile(self.session.user_id, public_id))


class Me(ApiHandler):
    def initialize(self, users: Users, rate: Rate) -> None:
        self._users, self._rate = users, rate

    async def get(self) -> None:
        """200 UserProfile with ``identity_key``, ``settings``, ``tier``, ``limits``."""
        self.reply(await self._users.me(self.session.user_id))

    async def put(self) -> None:
        """200 the profile after the change; 400."""
        self.reply(await self._users.change(self.session.user_id, self.body(ChangeMe)))

    async def delete(self) -> None:
        """204, and the account is gone; 401 ``invalid_credentials``, 400, 429."""
        request = self.body(DeleteMe)
        await self.limit("delete-me", self._rate)
        await self._users.delete(self.session, request.password)
        self.reply_nothing()
