"""Stripe: a PaymentIntent that succeeded, and the webhook that reports refunds and disputes."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping

import stripe
import structlog
from pydantic import ValidationError

from handlers.wire.errors import Unavailable
from handlers.wire.shapes import Shape, decode
from plugins.subscriptions.payments import TIER_NAME, TRIES
from plugins.subscriptions.prices import Price
from plugins.subscriptions.refusals import InvalidSignature

log = structlog.get_logger(__name__)

TOLERANCE = 300  # seconds that a webhook may be old; Stripe's own default

UNKNOWN_PAYMENT = "pi_0000MimuDoctor0000"  # no payment has this id

# Otherwise the library stores an id of this machine in a file, and sends it with the durations of earlier requests.
stripe.enable_telemetry = False


class _Charge(Shape):
    refunded: bool
    amount_refunded: int
    disputed: bool


class _Intent(Shape):
    """The fields of a PaymentIntent that are read. One that succeeded has a charge."""

    id: str
    status: str
    amount_received: int
    currency: str
    metadata: dict[str, str] | None = None
    latest_charge: _Charge | None = None


class _Object(Shape):
    """The fields of a charge or a dispute that are read."""

    payment_intent: str | None = None
    refunded: bool = False
    status: str = ""


class _Data(Shape):
    object: _Object


class _Event(Shape):
    type: str
    data: _Data


class Stripe:
    def __init__(
        self, key: str, webhook_key: str, url: str | None, prices: Mapping[str, Price], seconds: float
    ) -> None:
        self._key, self._webhook_key, self._url = key, webhook_key, url
        self._prices, self._seconds = prices, seconds
        self._client: stripe.StripeClient | None = None

    def form(self, proof: str) -> str | None:
        return proof if re.fullmatch(r"pi_[A-Za-z0-9]{8,64}", proof) else None

    def sells(self, tier: str) -> bool:
        return tier in self._prices

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        http = stripe.HTTPXClient(timeout=self._seconds / TRIES)
        self._client = stripe.StripeClient(
            self._key,
            base_addresses={"api": self._url} if self._url else None,
            http_client=http,
            max_network_retries=TRIES - 1,
        )
        try:
            yield
        finally:
            self._client = None
            await http.close_async()  # type: ignore[no-untyped-call]

    async def days(self, proof: str, tier: str) -> int | None:
        """Accept a PaymentIntent that succeeded, has the tier's price, and was not refunded or disputed."""
        price = self._prices[tier]
        answer = await self._intent(proof)
        if answer is None:
            return None
        try:
            intent = _Intent.model_validate(answer.to_dict())
        except (ValidationError, AttributeError, TypeError) as error:
            log.error("payment_answer_odd", method="stripe", cause=type(error).__name__)
            raise Unavailable from None
        charge = intent.latest_charge
        paid = (
            (intent.id, intent.status) == (proof, "succeeded")
            and (intent.amount_received, intent.currency) == (price.units, price.currency.lower())
            and (intent.metadata or {}).get(TIER_NAME, tier) == tier
            and charge is not None
            and not (charge.refunded or charge.amount_refunded or charge.disputed)
        )
        return price.days if paid else None

    async def _intent(self, proof: str) -> stripe.PaymentIntent | None:
        assert self._client is not None, "it is not running"
        try:
            async with asyncio.timeout(self._seconds):
                return await self._client.v1.payment_intents.retrieve_async(proof, {"expand": ["latest_charge"]})
        except stripe.InvalidRequestError as error:
            if error.http_status == 404:
                return None
            log.error("payment_provider_refused", method="stripe", status=error.http_status)
        except (stripe.AuthenticationError, stripe.PermissionError) as error:
            log.error("payment_provider_refused", method="stripe", status=error.http_status)
        except (stripe.StripeError, TimeoutError) as error:
            log.warning("payment_provider_away", method="stripe", cause=type(error).__name__)
        raise Unavailable

    async def probe(self) -> int:
        """Request a payment that does not exist. Returns the status: 404 if our key is accepted. Raises Unavailable."""
        assert self._client is not None, "it is not running"
        try:
            async with asyncio.timeout(self._seconds):
                await self._client.v1.payment_intents.retrieve_async(UNKNOWN_PAYMENT)
        except (stripe.StripeError, TimeoutError) as error:
            status = getattr(error, "http_status", None)
            if not isinstance(status, int):
                raise Unavailable from None
            return status
        return 200

    def refunded_proof(self, payload: bytes, signature: str) -> str | None:
        """Return the proof of a payment that a webhook reports as fully refunded or disputed; None for other events.
        Raises InvalidSignature if Stripe did not sign it, or InvalidRequest."""
        try:
            stripe.WebhookSignature.verify_header(payload, signature, self._webhook_key, TOLERANCE)
        except (stripe.SignatureVerificationError, ValueError, TypeError):
            raise InvalidSignature from None
        event = _Event.model_validate(decode(payload))
        charge = event.data.object
        refunds = {
            "charge.refunded": charge.refunded,  # false for a partial refund
            # An inquiry withdraws no money yet; when it does, Stripe sends the second event.
            "charge.dispute.created": not charge.status.startswith("warning_"),
            "charge.dispute.funds_withdrawn": True,
        }
        return self.form(charge.payment_intent or "") if refunds.get(event.type) else None
