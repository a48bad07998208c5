"""Purchases for tests, and the providers that know of payments: a local HTTP server that speaks as Stripe's API does,
and as the Greenfield API of a BTCPay Server, with their errors."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from models import vouchers
from server import Server
from tests import canaries
from tests.client import Account, Answer, ask, b64

STRIPE_KEY, WEBHOOK_KEY, STORE, BTCPAY_KEY = (
    "sk_test_4eC39HqLyjWDarjtT1",
    "whsec_9f3kq0aLtZ",
    "9CiNzKoANXxmk5ayZng",
    "a0c1f5",
)
PRICES = {"premium": ("4.99", 499), "ultra": ("9.99", 999)}
MOODS = ("good", "down", "away", "hang", "page", "cut", "empty", "list", "text", "refusing", "busy")


class Providers:
    """The payments and the state of the fake providers. ``asked`` has the path of each request."""

    def __init__(self) -> None:
        self.intents: dict[str, dict[str, Any]] = {}
        self.invoices: dict[str, dict[str, Any]] = {}
        self.mood = "good"
        self.recovers_after: int | None = None  # so many requests
        self.asked: list[str] = []
        self.url = ""

    @property
    def settings(self) -> dict[str, str]:
        """Of a server that asks them."""
        return {
            "STRIPE_SECRET_KEY": STRIPE_KEY,
            "STRIPE_WEBHOOK_KEY": WEBHOOK_KEY,
            "STRIPE_BASE_URL": self.url,
            "BTCPAY_BASE_URL": self.url + "/",
            "BTCPAY_STORE_ID": STORE,
            "BTCPAY_API_KEY": BTCPAY_KEY,
            "TIER_PREMIUM_PRICE": "4.99 EUR/30 days",
            "TIER_ULTRA_PRICE": "9.99 EUR/30 days",
            "PAYMENT_TIMEOUT_SECONDS": "1.5",
        }

    def intent(self, tier: str = "premium", **changes: Any) -> str:
        """A PaymentIntent as ``GET /v1/payment_intents/{id}`` shows it; its id."""
        name = "pi_" + secrets.token_hex(12)
        canaries.plant(name)
        charge = {
            "id": "ch_" + secrets.token_hex(12),
            "object": "charge",
            "amount": PRICES[tier][1],
            "amount_captured": PRICES[tier][1],
            "amount_refunded": 0,
            "captured": True,
            "currency": "eur",
            "disputed": False,
            "livemode": False,
            "metadata": {},
            "paid": True,
            "payment_intent": name,
            "refunded": False,
            "status": "succeeded",
        }
        self.intents[name] = {
            "id": name,
            "object": "payment_intent",
            "amount": PRICES[tier][1],
            "amount_capturable": 0,
            "amount_received": PRICES[tier][1],
            "capture_method": "automatic_async",
            "client_secret": f"{name}_secret_{secrets.token_hex(12)}",
            "created": int(time.time()),
            "currency": "eur",
            "latest_charge": {**charge, **changes.pop("charge", {})},
            "livemode": False,
            "metadata": {},
            "payment_method_types": ["card"],
            "status": "succeeded",
            **changes,
        }
        return name

    def invoice(self, tier: str = "premium", **changes: Any) -> str:
        """An invoice as ``GET /api/v1/stores/{storeId}/invoices/{invoiceId}`` shows it; its id."""
        name = secrets.token_hex(11)
        canaries.plant(name)
        self.invoices[name] = {
            "id": name,
            "storeId": STORE,
            "amount": PRICES[tier][0],
            "paidAmount": PRICES[tier][0],
            "currency": "EUR",
            "type": "Standard",
            "checkoutLink": f"{self.url}/i/{name}",
            "createdTime": int(time.time()),
            "expirationTime": int(time.time()) + 900,
            "monitoringExpiration": int(time.time()) + 87300,
            "status": "Settled",
            "additionalStatus": "None",
            "availableStatusesForManualMarking": ["Settled", "Invalid"],
            "archived": False,
            "metadata": {"orderId": "17", "orderUrl": None, "itemDesc": "Premium"},
            "checkout": {"speedPolicy": "MediumSpeed", "paymentMethods": ["BTC-CHAIN"]},
            "receipt": {"enabled": None, "showQR": None, "showPayments": None},
            **changes,
        }
        return name


class _Answering(RequestHandler):
    def initialize(self, providers: Providers) -> None:
        self.providers = providers

    async def prepare(self) -> None:
        providers = self.providers
        providers.asked.append(self.request.path)
        if providers.recovers_after is not None and len(providers.asked) > providers.recovers_after:
            providers.mood = "good"
        mood = providers.mood
        if mood == "hang":
            await asyncio.sleep(5)
        if mood == "away":
            self.request.connection.stream.close()  # type: ignore[union-attr]
            return
        status, text = {
            "down": (500, json.dumps({"error": {"message": "An unknown error occurred", "type": "api_error"}})),
            "page": (200, "<html><body>Welcome to nginx!</body></html>"),
            "cut": (200, '{"id": "pi_'),
            "empty": (200, "{}"),
            "list": (200, "[]"),
            "text": (200, '"succeeded"'),
            "refusing": (
                403,
                json.dumps({"error": {"message": "The key lacks a permission", "type": "permission_error"}}),
            ),
            "busy": (429, json.dumps({"error": {"message": "Too many requests", "code": "rate_limit"}})),
        }.get(mood, (0, ""))
        if status:
            self.set_status(status)
            self.finish(text)

    def say(self, value: Any, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(value))


class _Intents(_Answering):
    """https://docs.stripe.com/api/payment_intents/retrieve, https://docs.stripe.com/api/errors"""

    def get(self, name: str) -> None:
        assert self.request.headers["Stripe-Version"]
        if self.request.headers.get("Authorization") != f"Bearer {STRIPE_KEY}":
            error = {"message": "Invalid API Key provided: sk_test_***", "type": "invalid_request_error"}
            return self.say({"error": error}, 401)
        intent = self.providers.intents.get(name)
        if intent is None:
            error = {
                "code": "resource_missing",
                "doc_url": "https://stripe.com/docs/error-codes/resource-missing",
                "message": f"No such payment_intent: '{name}'",
                "param": "intent",
                "type": "invalid_request_error",
            }
            return self.say({"error": error}, 404)
        charge = intent["latest_charge"]
        expanded = "latest_charge" in [value.decode() for values in self.request.arguments.values() for value in values]
        return self.say({**intent, "latest_charge": charge if expanded or charge is None else charge["id"]})


class _Invoices(_Answering):
    """https://docs.btcpayserver.org/API/Greenfield/v1/#operation/Invoices_GetInvoice"""

    def get(self, store: str, name: str) -> None:
        if self.request.headers.get("Authorization") != f"token {BTCPAY_KEY}":
            self.set_header("WWW-Authenticate", "Basic")
            return self.say({"code": "unauthenticated", "message": "Authentication is required"}, 401)
        if store != STORE:
            return self.say({"code": "missing-permission", "message": "Insufficient API Permissions"}, 403)
        invoice = self.providers.invoices.get(name)
        if invoice is None:
            return self.say({"code": "invoice-not-found", "message": "The invoice was not found"}, 404)
        return self.say(invoice)


@contextlib.asynccontextmanager
async def providing() -> AsyncIterator[Providers]:
    """Both providers, on one port of the loopback."""
    providers = Providers()
    known = {"providers": providers}
    site = Application(
        [
            ("/v1/payment_intents/([^/]+)", _Intents, known),
            ("/api/v1/stores/([^/]+)/invoices/([^/]+)", _Invoices, known),
        ],
        log_function=lambda _: None,
    )
    server = HTTPServer(site)
    server.listen(0, "127.0.0.1")
    providers.url = f"http://127.0.0.1:{next(iter(server._sockets.values())).getsockname()[1]}"
    try:
        yield providers
    finally:
        server.stop()
        await server.close_all_connections()


def signed_event(
    kind: str, found: dict[str, Any], *, key: str = WEBHOOK_KEY, at: float | None = None
) -> tuple[bytes, dict[str, str]]:
    """A webhook's body and headers (https://docs.stripe.com/webhooks#verify-manually)."""
    moment = int(time.time() if at is None else at)
    event = {
        "id": "evt_" + secrets.token_hex(12),
        "object": "event",
        "api_version": "2026-01-28",
        "created": moment,
        "data": {"object": found},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": kind,
    }
    body = json.dumps(event, indent=2).encode()
    signature = hmac.new(key.encode(), f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
    return body, {
        "Stripe-Signature": f"t={moment},v1={signature},v0={'0' * 64}",
        "Content-Type": "application/json; charset=utf-8",
    }


async def voucher(server: Server, tier: str = "premium", days: int = 30, **more: Any) -> str:
    """A new code."""
    [code] = await vouchers.create(server.app.db, tier, days, 1, **more)
    canaries.plant(code, code.replace("-", ""))
    return code


def new_prid() -> str:
    prid = str(uuid4())
    canaries.plant(prid)
    return prid


def hashed(prid: str) -> str:
    return hashlib.sha256(prid.encode()).hexdigest()


def purchase(
    owner: Account, prid: str, method: str, proof: str, tier: str = "premium", **changes: Any
) -> dict[str, Any]:
    """The body of a purchase, signed by its owner."""
    message = f"mimu-sub-v1|{hashed(prid)}|{tier}".encode()
    return {
        "prid_hash": hashed(prid),
        "subscription_tier": tier,
        "user_fingerprint": owner.fingerprint,
        "signature": b64(owner.signing.sign(message).signature),
        "payment_proof": proof,
        "payment_method": method,
        **changes,
    }


async def buy(owner: Account, body: dict[str, Any]) -> Answer:
    """Ask for a purchase, without a token."""
    return await ask(owner.url, "POST", "/subscriptions/purchase", body)


async def validate(owner: Account, prid: str, message: str | None = None) -> Any:
    """What validating answers; signed by the owner over ``message``, or what the contract says."""
    signature = owner.signing.sign((message or f"mimu-sub-validate-v1|{prid.lower()}").encode()).signature
    answer = await ask(owner.url, "POST", "/subscriptions/validate", {"prid": prid, "signature": b64(signature)})
    assert answer.status == 200, answer.text
    return answer.json


async def stored(server: Server) -> tuple[int, int, int]:
    """How many subscriptions, spent proofs and used vouchers there are."""
    row = await server.app.db.row(
        """SELECT (SELECT count(*) FROM subscriptions), (SELECT count(*) FROM spent_proofs),
                  (SELECT count(*) FROM vouchers WHERE used_at IS NOT NULL)"""
    )
    assert row is not None
    return tuple(row)  # type: ignore[return-value]
