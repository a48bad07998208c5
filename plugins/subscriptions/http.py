"""The endpoints of ``/subscriptions``."""

from __future__ import annotations

from config.values import Rate
from handlers.http.base import ApiHandler
from handlers.wire.costs import READS, UPDATES, WRITES
from handlers.wire.errors import Conflict
from handlers.wire.operations import Answer, Header, operation
from plugins.subscriptions import shapes
from plugins.subscriptions.payments.stripe import Stripe
from plugins.subscriptions.refusals import InvalidSignature, PaymentMethodUnavailable, PaymentRequired
from plugins.subscriptions.subscriptions import Subscriptions


class Offers(ApiHandler):
    public = True

    def initialize(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions

    @operation({200: list[shapes.TierOffer]}, cost=READS)
    def get(self) -> None:
        """List the tiers: what each allows, what it costs, and how to pay. `free` comes first."""
        self.reply(self._subscriptions.offers())


class Purchases(ApiHandler):
    public = True

    def initialize(self, subscriptions: Subscriptions, rate: Rate) -> None:
        self._subscriptions, self._rate = subscriptions, rate

    @operation(
        {
            201: shapes.Subscription,
            200: Answer(shapes.Subscription, "The purchase was made before; the subscription as it is now."),
        },
        refuses=(PaymentRequired, InvalidSignature, Conflict, PaymentMethodUnavailable),
        limits={"rate_limit_purchase": "address"},
        cost=WRITES,
    )
    async def post(self, body: shapes.Purchase) -> None:
        """Buy a subscription anonymously. Send no token with it.

        `signature` is Ed25519 by the owner's signing key over `mimu-sub-v1|{prid_hash}|{tier}`. Time begins now, or
        when the owner's present subscription of that tier ends.

        The server checks in this order: the signature (403); a malformed proof (402); a PRID or payment of
        another purchase (409); a tier that it doesn't sell that way (422); whether it was paid (402). While the
        provider is away it answers 503, and stores nothing.
        """
        await self.limit("purchase", self._rate)
        bought = await self._subscriptions.purchase(body)
        self.reply(bought.subscription, 201 if bought.new else 200)


class Restore(ApiHandler):
    def initialize(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions

    @operation({200: list[shapes.RestoreItem]}, cost=READS)
    async def get(self) -> None:
        """List the active subscriptions of the token's fingerprint, the latest first."""
        await self.reserve()
        self.reply(await self._subscriptions.restore(self.session.fingerprint))


class Validations(ApiHandler):
    public = True

    def initialize(self, subscriptions: Subscriptions, rate: Rate) -> None:
        self._subscriptions, self._rate = subscriptions, rate

    @operation({200: shapes.Validity}, limits={"rate_limit_validate": "address"}, cost=READS)
    async def post(self, body: shapes.Validation) -> None:
        """Check whether the owner of a PRID has a subscription, anonymously: send no token with it.

        `signature` is by the owner's signing key over `mimu-sub-validate-v1|{prid}`, where `prid` is text with hyphens,
        in small letters or as you send it, or over what the purchase was signed over. All negative results are the
        same response, `false`, null and null, also a wrong signature.
        """
        await self.limit("validate", self._rate)
        self.reply(await self._subscriptions.validate(body.prid, body.signature))


class StripeWebhook(ApiHandler):
    public = True
    KEY = Header("Stripe-Signature", "Stripe's signature with the webhook's key.", required=True, key=True)

    def initialize(self, subscriptions: Subscriptions, stripe: Stripe | None) -> None:
        self._subscriptions, self._stripe = subscriptions, stripe

    @operation(
        {204: None},
        refuses=(InvalidSignature, PaymentMethodUnavailable),
        headers=(KEY,),
        media=("application/json",),
        cost=UPDATES,
    )
    async def post(self) -> None:
        """Receive a refund or a dispute from Stripe, and cancel the subscription of that payment.

        It takes `charge.refunded` (of the whole amount), `charge.dispute.created` and `charge.dispute.funds_withdrawn`,
        and ignores all other events. 422 without Stripe.
        """
        if self._stripe is None:
            raise PaymentMethodUnavailable
        proof = self._stripe.refunded_proof(self.raw_body, self.request.headers.get(self.KEY.name, ""))
        if proof is not None:
            await self._subscriptions.cancel("stripe", proof)
        self.reply_nothing()
