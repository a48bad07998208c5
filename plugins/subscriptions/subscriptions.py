"""Subscriptions: sold for confirmed payments, restored by their owner, and ended when they expire or are refunded."""

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


class Sale(NamedTuple):
    subscription: shapes.Subscription
    new: bool


class Subscriptions:
    def __init__(
        self, db: Database, hub: Hub, providers: Providers, tiers: Mapping[str, Tier], prices: Mapping[str, Price]
    ) -> None:
        self._db, self._hub, self._providers = db, hub, providers
        self._offers = [self._offer(name, tier, prices.get(name)) for name, tier in tiers.items()]
        # A random key to check signatures of unknown users with, so that both cases take the same time.
        self._decoy_key = bytes(SigningKey.generate().verify_key)

    def _offer(self, name: str, tier: Tier, price: Price | None) -> dict[str, Any]:
        methods = [method for method, provider in self._providers.items() if name != FREE and provider.sells(name)]
        return {
            "tier": name,
            "limits": tier.allowance(),
            "price": price.shown() if price else None,
            "payment_methods": methods,
        }

    def offers(self) -> list[dict[str, Any]]:
        """Return each tier with its limits, price and payment methods."""
        return self._offers

    # Buying -----------------------------------------------------------------------------------------------------------

    async def purchase(self, request: shapes.Purchase) -> Sale:
        """Sell a subscription, or return that of the same purchase before.

        Raises, in this order, InvalidSignature, Conflict, PaymentMethodUnavailable, PaymentRequired, Unavailable.
        """
        await self._check_signature(request)
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
        # Before the provider is called, so that a repeated purchase does not depend on the provider.
        earlier = await self._earlier(purchase)
        if earlier is not None:
            return Sale(earlier, new=False)
        if provider is None or not provider.sells(tier):
            raise PaymentMethodUnavailable
        days = await provider.days(proof, tier)
        bought = await subscriptions.buy(self._db, purchase, days) if days is not None else None
        if bought is None:
            # Not paid; or another request was quicker, perhaps of the same client; or it was refunded just now.
            earlier = await self._earlier(purchase)
            if earlier is None:
                raise PaymentRequired
            return Sale(earlier, new=False)
        self._notify([bought])
        return Sale(shapes.subscription(bought), new=True)

    async def _check_signature(self, request: shapes.Purchase) -> None:
        key = await subscriptions.signing_key(self._db, request.user_fingerprint)
        messages = purchase_messages(request.prid_hash, request.subscription_tier)
        signed = [ed25519(key or self._decoy_key, request.signature, message) for message in messages]
        if not any(signed) or key is None:
            raise InvalidSignature

    async def _earlier(self, purchase: subscriptions.Purchase) -> shapes.Subscription | None:
        """Return the subscription if this purchase was made before. Raises Conflict if another purchase has its PRID or
        its payment."""
        clashing = await subscriptions.clashing(self._db, purchase)
        for row in clashing:
            if row["same"]:
                await self._db.replicated()  # the first request may have timed out while it waited for the standby
                return shapes.subscription(row)
        if clashing:
            raise Conflict("The PRID or the payment belongs to another purchase.")
        return None

    # Reading ----------------------------------------------------------------------------------------------------------

    async def restore(self, fingerprint: str) -> list[shapes.RestoreItem]:
        """Return a RestoreItem for each current subscription of the fingerprint, which must match exactly."""
        return [shapes.restored(row) for row in await subscriptions.live(self._db, fingerprint)]

    async def validate(self, prid: str, signature: bytes) -> shapes.Validity:
        """Return the current subscription of a PRID. All negative results are the same, in the same time.

        The buyer hashed and signed the PRID as lower-case text with hyphens, or as it is sent (upper case in Swift).
        """
        forms = (str(UUID(prid)), prid)
        hashes = [hashlib.sha256(form.encode()).hexdigest() for form in forms]
        row = await subscriptions.of_prid(self._db, hashes)
        key = row["signing_public_key"] if row else self._decoy_key
        messages = [f"mimu-sub-validate-v1|{form}".encode() for form in forms]
        messages += purchase_messages(row["prid_hash"] if row else hashes[0], row["tier"] if row else FREE)
        signed = [ed25519(key, signature, message) for message in messages]  # all of them, for constant time
        if row is None or not any(signed):
            return {"valid": False, "tier": None, "expires_at": None}
        return {"valid": True, "tier": row["tier"], "expires_at": row["expires_at"]}

    # Ending -----------------------------------------------------------------------------------------------------------

    async def cancel(self, method: str, proof: str) -> None:
        """Cancel the subscription of a refunded payment. The payment buys nothing any more."""
        changed = await subscriptions.cancel(self._db, subscriptions.proof_hash(method, proof))
        if changed:
            log.info("subscription_cancelled", method=method)
            self._notify(changed)

    async def expire(self, limit: int) -> int:
        """Mark at most ``limit`` ended subscriptions as expired, and notify their owners. Readers check expiry
        themselves."""
        rows = await subscriptions.expire(self._db, limit)
        if rows:
            log.info("subscriptions_expired", count=len(rows))
            self._notify(rows)
        return len(rows)

    def _notify(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if row["owner"] is not None:
                self._hub.send(row["owner"], shapes.updated(row))
