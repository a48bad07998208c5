"""The endpoints that hand out and take in prekeys."""

from __future__ import annotations

from config.settings import Rate
from handlers.base import ApiHandler
from plugins.prekeys.prekeys import Prekeys
from plugins.prekeys.shapes import BundleQuery, Upload


class Bundle(ApiHandler):
    def initialize(self, prekeys: Prekeys) -> None:
        self._prekeys = prekeys

    async def get(self, public_id: str) -> None:
        """200 bundle; 404, 429."""
        signal_form = self.query(BundleQuery).format == "signal"
        self.reply(await self._prekeys.bundle(self.session.user_id, public_id, signal_form=signal_form))


class Supply(ApiHandler):
    def initialize(self, prekeys: Prekeys, rate: Rate) -> None:
        self._prekeys, self._rate = prekeys, rate

    async def get(self) -> None:
        """200 what is left."""
        self.reply(await self._prekeys.supply(self.session.user_id))

    async def post(self) -> None:
        """200 what is left after the upload; 400, 409, 429."""
        request = self.body(Upload)
        await self.limit("prekey-upload", self._rate, str(self.session.user_id))
        self.reply(await self._prekeys.upload(self.session.user_id, request))
