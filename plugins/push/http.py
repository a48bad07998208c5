"""The endpoints of ``/push``."""

from __future__ import annotations

from uuid import UUID

from config.values import Rate
from handlers.http.base import ApiHandler
from handlers.wire.costs import READS, UPDATES
from handlers.wire.errors import NotFound
from handlers.wire.operations import Answer, operation
from plugins.push.preferences import PushPreferences
from plugins.push.shapes import ApplicationServerKey, Preferences, Registration, Token
from plugins.push.tokens import Tokens


class PushTokens(ApiHandler):
    def initialize(self, tokens: Tokens, rate: Rate) -> None:
        self._tokens, self._rate = tokens, rate

    @operation({200: list[Token]}, cost=READS)
    async def get(self) -> None:
        """List your push tokens, the one registered last first."""
        self.reply(await self._tokens.list_all(self.session))

    @operation(
        {201: Token, 200: Answer(Token, "The account already had the token; it now belongs to the current session.")},
        limits={"rate_limit_push": "user"},
        cost=UPDATES,
    )
    async def put(self, body: Registration) -> None:
        """Register a push token. It ends with its session.

        An eleventh token of an account replaces the one that was registered longest ago. The same token of another
        account stays as it is.
        """
        await self.limit("push", self._rate, str(self.session.user_id))
        token, new = await self._tokens.register(self.session, body)
        self.reply(token, 201 if new else 200)


class PushToken(ApiHandler):
    def initialize(self, tokens: Tokens) -> None:
        self._tokens = tokens

    @operation({204: None}, refuses=(NotFound,), cost=UPDATES)
    async def delete(self, token_id: UUID) -> None:
        """Remove a push token."""
        await self._tokens.remove(self.session.user_id, token_id)
        self.reply_nothing()


class PushSettings(ApiHandler):
    def initialize(self, preferences: PushPreferences, rate: Rate) -> None:
        self._preferences, self._rate = preferences, rate

    @operation({200: Preferences}, cost=READS)
    async def get(self) -> None:
        """Get your push settings."""
        self.reply(await self._preferences.of(self.session.user_id))

    @operation({200: Preferences}, limits={"rate_limit_push": "user"}, cost=UPDATES)
    async def put(self, body: Preferences) -> None:
        """Change your push settings; what you do not send stays."""
        await self.limit("push", self._rate, str(self.session.user_id))
        self.reply(await self._preferences.change(self.session.user_id, body))


class Vapid(ApiHandler):
    def initialize(self, public_key: dict[str, str]) -> None:
        self._public_key = public_key

    @operation({200: ApplicationServerKey}, refuses=(NotFound,), cost=READS)
    def get(self) -> None:
        """Get the key with which browsers and UnifiedPush subscribe; 404 if this server sends no Web Push."""
        if not self._public_key:
            raise NotFound("This server sends no Web Push.")
        self.reply(self._public_key)
