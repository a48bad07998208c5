"""The endpoints that hand out bundles and accept prekeys."""

from __future__ import annotations

from config.values import Rate
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
        """Get what you need to start a Signal session with a user.

        A one-time prekey is handed out once, ever. When fewer than 10 are left, the owner's sockets get `prekeys_low`,
        or their devices a push. Your own bundle shows no one-time prekey and uses none up.
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
        """Upload prekeys: the server takes all of them or none.

        A new signed prekey, or last-resort key, replaces the present one. More than 1,000 unused ones of a kind are
        400.

        You can repeat an upload whose response was lost: a key that is there under the same `key_id` stays as it is,
        handed out or not, for as long as it is kept (30 days after its use). A `key_id` that you have sent with another
        key is `conflict`. So is a signed prekey or a Kyber key that you have sent before, or replaced, under whatever
        `key_id`: its signature doesn't say when it was made.
        """
        await self.limit("prekey-upload", self._rate, str(self.session.user_id))
        self.reply(await self._prekeys.upload(self.session.user_id, body))
