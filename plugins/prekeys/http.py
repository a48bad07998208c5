"""The endpoints that hand out bundles and accept prekeys."""

from __future__ import annotations

from config.settings import Rate
from handlers.http.base import ApiHandler
from handlers.wire.costs import READS, WRITES
from handlers.wire.errors import Conflict, NotFound
from handlers.wire.operations import operation
from handlers.wire.shapes import UserRef
from plugins.prekeys import shapes
from plugins.prekeys.prekeys import Prekeys


class Bundle(ApiHandler):
    head_allowed = False  # GET spends a one-time prekey

    def initialize(self, prekeys: Prekeys) -> None:
        self._prekeys = prekeys

    @operation(
        {200: shapes.Bundle},
        refuses=(NotFound,),
        limits={"rate_limit_bundle": "user and target", "rate_limit_bundles": "user"},
        cost=READS,
    )
    async def get(self, public_id: UserRef, query: shapes.BundleQuery) -> None:
        """Fetch a user's bundle of keys, which opens a Signal session.

        A one-time prekey is handed out once, ever. The server notifies the owner when few are left. Your own bundle
        contains no one-time prekey and uses none.
        """
        signal_form = query.format == "signal"
        self.reply(await self._prekeys.bundle(self.session.user_id, public_id, signal_form=signal_form))


class Supply(ApiHandler):
    def initialize(self, prekeys: Prekeys, rate: Rate) -> None:
        self._prekeys, self._rate = prekeys, rate

    @operation({200: shapes.Supply}, refuses=(NotFound,), cost=READS)
    async def get(self) -> None:
        """Get how many of your prekeys are left."""
        self.reply(await self._prekeys.supply(self.session.user_id))

    @operation(
        {200: shapes.Supply}, refuses=(NotFound, Conflict), limits={"rate_limit_prekey_upload": "user"}, cost=WRITES
    )
    async def post(self, body: shapes.Upload) -> None:
        """Upload prekeys; the server stores all or none.

        A new signed prekey or last-resort key replaces the present one. A `key_id` that was sent before with another
        key is 409, and so is a signed key that was replaced. Keys that are stored already stay as they are, so an
        upload can be repeated.
        """
        await self.limit("prekey-upload", self._rate, str(self.session.user_id))
        self.reply(await self._prekeys.upload(self.session.user_id, body))
