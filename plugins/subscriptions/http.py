"""The endpoints of ``/subscriptions``."""

from __future__ import annotations

from config.settings import Rate
from handlers.base import ApiHandler
from plugins.subscriptions.payments.stripe import Stripe
from plugins.subscriptions.refusals import PaymentMethodUnavailable
from plugins.subscriptions.shapes import Purchase, Validation
from plugins.subscriptions.subscriptions import Subscriptions


class Offers(ApiHandler):
    public = True

    def initialize(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions

    def get(self) -> None:
        """200 each tier with its limits, price and payment methods."""
        self.reply(self._subscriptions.offers())


class Purchases(ApiHandler):
    public = True

    def initialize(self, subscriptions: Subscriptions, rate: Rate) -> None:
        self._subscriptions, self._rate = subscriptions, rate

    async def post(self) -> None:
        """201 the subscription, 200 for a repetition; 400, 402, 403, 409, 422, 429, 503."""
        request = self.body(Purchase)
        await self.limit("purchase", self._rate)
        bought = await self._subscriptions.purchase(request)
        self.reply(bought.subscription, 201 if bought.new else 200)


class Restore(ApiHandler):
    def initialize(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions

    async def get(self) -> None:
        """200 list of RestoreItem."""
        self.reply(await self._subscriptions.restore(self.session.fingerprint))


class Validations(ApiHandler):
    public = True

    def initialize(self, subscriptions: Subscriptions, rate: Rate) -> None:
        self._subscriptions, self._rate = subscriptions, rate

    async def post(self) -> None:
        """200 ``valid``, ``tier``, ``expires_at``; 400, 429."""
        request = self.body(Validation)
        await self.limit("validate", self._rate)
        self.reply(await self._subscriptions.validate(request.prid, request.signature))


class StripeWebhook(ApiHandler):
    public = True

    def initialize(self, subscriptions: Subscriptions, stripe: Stripe | None) -> None:
        self._subscriptions, self._stripe = subscriptions, stripe

    async def post(self) -> None:
        """204 whatever the event tells; 400, 403, 422."""
        if self._stripe is None:
            raise PaymentMethodUnavailable
        proof = self._stripe.taken_back(self.raw_body, self.request.headers.get("Stripe-Signature", ""))
        if proof is not None:
            await self._subscriptions.take_back("stripe", proof)
        self.reply_nothing()
