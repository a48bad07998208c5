"""Subscriptions: bought with what was really paid, found again by their owner, and over when they are over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from nacl.signing import SigningKey

from config.tiers import FREE, Tier
from handlers.sockets.hub import Hub
from handlers.wire.errors import Conflict
from handlers.wire.signal_keys import ed25519, purchase_messages
from models import subscriptions
from models.database import Database, Row
from plugins.subscriptions import shapes
from plugins.subscriptions.payments import Providers
from plugins.subscriptions.prices import Price
from plugins.subscriptions.refusals import InvalidSignature, PaymentMethodUnavailable, PaymentRequired

log = structlog.get_logger(__name__)


class Bought(NamedTuple):
    subscription: shapes.Subscription
    new: bool


class Subscriptions:
    def __init__(
        self, db: Database, hub: Hub, providers: Providers, tiers: Mapping[str, Tier], prices: Mapping[str, Price]
    ) -> None:
        self._db, self._hub, self._providers = db, hub, providers
        self._offers = [self._offer(name, tier, prices.get(name)) for name, tier in tiers.items()]
        # Nobody's: for who isn't there a signature is checked, too, so that both take as long.
        self._nobody = bytes(SigningKey.generate().verify_key)

    def _offer(self, name: str, tier: Tier, price: Price | None) -> dict[str, Any]:
        methods = [method for method, provider in self._providers.items() if name != FREE and provider.sells(name)]
        return {
            "tier": name,
            "limits": tier.shown(),
            "price": price.shown() if price else None,
            "payment_methods": methods,
        }

    def offers(self) -> list[dict[str, Any]]:
        """Each tier: what it allows, what it costs, and how it can be paid."""
        return self._offers

    # Buying -----------------------------------------------------------------------------------------------------------

    async def purchase(self, request: shapes.Purchase) -> Bought:
        """The subscription that was paid for; again for the same purchase.

        Raises, in this order, InvalidSignature, Conflict, PaymentMethodUnavailable, PaymentRequired, Unavailable.
        """
        await self._judge_signature(request)
        provider = self._providers.get(request.payment_method)
        proof = provider.form(request.payment_proof) if provider else request.payment_proof
        if proof is None:
            raise PaymentRequired
        tier, method = request.subscription_tier, request.payment_method
        purchase = subscriptions.Purchase(
            prid_hash=request.prid_hash,
            fingerprint=request.user_fingerprint,
            tier=tier,
            signature=request.signature,
            method=method,
            proof_hash=subscriptions.proof_hash(method, proof),
        )
        # Before anybody is asked, so that the answer to a repetition doesn't hang on a provider.
        earlier = await self._earlier(purchase)
        if earlier is not None:
            return Bought(earlier, new=False)
        if provider is None or not provider.sells(tier):
            raise PaymentMethodUnavailable
        days = await provider.days(proof, tier)
        bought = await subscriptions.buy(self._db, purchase, days) if days is not None else None
        if bought is None:
            # It was not paid; or somebody was quicker, perhaps the same client; or it was taken back in this moment.
            earlier = await self._earlier(purchase)
            if earlier is None:
                raise PaymentRequired
            return Bought(earlier, new=False)
        self._tell([bought])
        return Bought(shapes.subscription(bought), new=True)

    async def _judge_signature(self, request: shapes.Purchase) -> None:
        key = await subscriptions.signing_key(self._db, request.user_fingerprint)
        messages = purchase_messages(request.prid_hash, request.subscription_tier)
        signed = [ed25519(key or self._nobody, request.signature, message) for message in messages]
        if not any(signed) or key is None:
            raise InvalidSignature

    async def _earlier(self, purchase: subscriptions.Purchase) -> shapes.Subscription | None:
        """What this very purchase brought before. Raises Conflict when another had its PRID or its payment."""
        clashing = await subscriptions.clashing(self._db, purchase)
        for row in clashing:
            if row["same"]:
                await self._db.replicated()  # it may have been given up while it waited for the standby
                return shapes.subscription(row)
        if clashing:
            raise Conflict("The PRID or the payment belongs to another purchase.")
        return None

    # Asking -----------------------------------------------------------------------------------------------------------

    async def restore(self, fingerprint: str) -> list[shapes.RestoreItem]:
        """RestoreItem for each subscription that is paid for just now, by the fingerprint exactly as it is stored."""
        return [shapes.restored(row) for row in await subscriptions.live(self._db, fingerprint)]

    async def validate(self, prid: str, signature: bytes) -> shapes.Validity:
        """Whether the owner of a PRID has a subscription. Every kind of no is the same answer, in the same time.

        The buyer hashed and signed the PRID as lower-case text with hyphens, or as it is sent (Swift writes capitals).
        """
        forms = (str(UUID(prid)), prid)
        hashes = [hashlib.sha256(form.encode()).hexdigest() for form in forms]
        row = await subscriptions.of_prid(self._db, hashes)
        key = row["signing_public_key"] if row else self._nobody
        messages = [f"mimu-sub-validate-v1|{form}".encode() for form in forms]
        messages += purchase_messages(row["prid_hash"] if row else hashes[0], row["tier"] if row else FREE)
        signed = [ed25519(key, signature, message) for message in messages]  # all, whichever it is
        if row is None or not any(signed):
            return {"valid": False, "tier": None, "expires_at": None}
        return {"valid": True, "tier": row["tier"], "expires_at": row["expires_at"]}

    # Ending -----------------------------------------------------------------------------------------------------------

    async def take_back(self, method: str, proof: str) -> None:
        """A payment went back: what it bought is cancelled, and it buys nothing any more."""
        changed = await subscriptions.cancel(self._db, subscriptions.proof_hash(method, proof))
        if changed:
            log.info("subscription_cancelled", method=method)
            self._tell(changed)

    async def expire(self, limit: int) -> int:
        """Mark what has ended, at most so many, and notify its owners. It had ended for every reader before."""
        rows = await subscriptions.expire(self._db, limit)
        if rows:
            log.info("subscriptions_expired", count=len(rows))
            self._tell(rows)
        return len(rows)

    def _tell(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if row["owner"] is not None:
                self._hub.send(row["owner"], shapes.updated(row))
