"""The endpoints of ``/push``."""

from __future__ import annotations

from uuid import UUID

from config.settings import Rate
from handlers.base import ApiHandler
from handlers.errors import NotFound
from plugins.push.preferences import Wishes
from plugins.push.shapes import Preferences, Register
from plugins.push.tokens import Tokens


class PushTokens(ApiHandler):
    def initialize(self, tokens: Tokens, rate: Rate) -> None:
        self._tokens, self._rate = tokens, rate

    async def get(self) -> None:
        """200 list of Token, the one registered last first."""
        self.reply(await self._tokens.listed(self.session))

    async def put(self) -> None:
        """201 Token; 200 when it was registered before; 400, 429."""
        request = self.body(Register)
        await self.limit("push", self._rate, str(self.session.user_id))
        token, new = await self._tokens.register(self.session, request)
        self.reply(token, 201 if new else 200)


class PushToken(ApiHandler):
    def initialize(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def delete(self, token_id: str) -> None:
        """204; 404."""
        await self._tokens.remove(self.session.user_id, UUID(token_id))
        self.reply_nothing()


class PushSettings(ApiHandler):
    def initialize(self, wishes: Wishes, rate: Rate) -> None:
        self._wishes, self._rate = wishes, rate

    async def get(self) -> None:
        """200 Preferences."""
        self.reply(await self._wishes.of(self.session.user_id))

    async def put(self) -> None:
        """200 Preferences after the change; 400, 429."""
        request = self.body(Preferences)
        await self.limit("push", self._rate, str(self.session.user_id))
        self.reply(await self._wishes.change(self.session.user_id, request))


class Vapid(ApiHandler):
    def initialize(self, public_key: dict[str, str]) -> None:
        self._public_key = public_key

    def get(self) -> None:
        """200 ``public_key``, ``application_server_key``; 404 where Web Push is not set up."""
        if not self._public_key:
            raise NotFound("This server sends no Web Push.")
        self.reply(self._public_key)
