"""Refunds and disputes: events of Stripe's webhook, their signatures, and the subscriptions they end."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models import subscriptions
from server import Server
from tests.client import Account, Answer, ask
from tests.plugins.paying import (
    Providers,
    buy,
    hashed,
    new_prid,
    providing,
    purchase,
    signed_event,
    stored,
    validate,
    voucher,
)
from tests.running import Services, place, serving

WEBHOOK = "/subscriptions/webhooks/stripe"
PARTIAL, WHOLE = {"refunded": False, "amount_refunded": 100}, {"refunded": True, "amount_refunded": 499}


async def tell(server: Server, kind: str, found: dict[str, Any], **how: Any) -> Answer:
    body, headers = signed_event(kind, found, **how)
    return await ask(server.url, "POST", WEBHOOK, body, headers=headers)


def charge(providers: Providers, intent: str, **changes: Any) -> dict[str, Any]:
    return {**providers.intents[intent]["latest_charge"], **changes}


def dispute(intent: str, status: str) -> dict[str, Any]:
    return {
        "id": "dp_1",
        "object": "dispute",
        "amount": 499,
        "payment_intent": intent,
        "charge": "ch_1",
        "status": status,
    }


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("kind", "found", "status"),
    [
        ("charge.refunded", WHOLE, "cancelled"),
        ("charge.refunded", PARTIAL, "active"),
        ("charge.dispute.created", "needs_response", "cancelled"),
        ("charge.dispute.created", "warning_needs_response", "active"),  # an inquiry: no money went back yet
        ("charge.dispute.funds_withdrawn", "needs_response", "cancelled"),
        ("charge.dispute.closed", "won", "active"),
        ("charge.succeeded", {}, "active"),
        ("payment_intent.succeeded", {}, "active"),
    ],
)
async def test_each_event_of_stripe_has_its_effect(services: Services, kind: str, found: Any, status: str) -> None:
    async with place(services) as shared, providing() as providers, serving(shared, **providers.settings) as server:
        alice = await Account().register(server.url)
        intent, prid = providers.intent(), new_prid()
        bought = (await buy(alice, purchase(alice, prid, "stripe", intent))).json
        about = dispute(intent, found) if isinstance(found, str) else charge(providers, intent, **found)
        async with alice.socket() as socket:
            for _ in range(2):  # Stripe may tell twice
                answer = await tell(server, kind, about)
                assert (answer.status, answer.text) == (204, "")
            assert await server.app.db.value("SELECT status::text FROM subscriptions") == status
            if status == "cancelled":
                frame = await socket.expect("subscription_updated")
                assert frame == {"type": "subscription_updated", **bought, "status": "cancelled"}
            await socket.silent()
        assert (await validate(alice, prid))["valid"] is (status == "active")
        assert (await alice.get("/users/me")).json["tier"] == ("premium" if status == "active" else "free")


@pytest.mark.gen_test
async def test_only_stripe_is_believed(services: Services) -> None:
    async with place(services) as shared, providing() as providers, serving(shared, **providers.settings) as server:
        alice = await Account().register(server.url)
        intent = providers.intent()
        assert (await buy(alice, purchase(alice, new_prid(), "stripe", intent))).status == 201
        refund = charge(providers, intent, **WHOLE)
        body, good = signed_event("charge.refunded", refund)
        other = signed_event("charge.refunded", refund, key="whsec_of_somebody_else")
        old = signed_event("charge.refunded", refund, at=time.time() - 301)
        signature = good["Stripe-Signature"]
        for sent, header in (
            (body, None),
            (body, ""),
            (body, "t=,v1="),
            (body, "v1=" + "0" * 64),
            (body, signature.replace("v1=", "v2=")),
            (body, signature.replace("v1=", "v1=é")),
            (body, "t=" + "9" * 400 + signature[signature.index(",") :]),
            (body + b" ", signature),
            (b"\xff" + body, signature),
            (b"", signature),
            (other[0], other[1]["Stripe-Signature"]),
            (old[0], old[1]["Stripe-Signature"]),
        ):
            headers = {} if header is None else {"Stripe-Signature": header}
            answer = await ask(server.url, "POST", WEBHOOK, sent, headers=headers)
            assert (answer.status, answer.code) == (403, "invalid_signature"), header
        assert await server.app.db.value("SELECT status::text FROM subscriptions") == "active"
        assert (await ask(server.url, "POST", WEBHOOK, body, headers=good)).status == 204
        assert await server.app.db.value("SELECT status::text FROM subscriptions") == "cancelled"


@pytest.mark.gen_test
async def test_events_that_name_no_payment_of_ours_are_taken_and_do_nothing(services: Services) -> None:
    async with place(services) as shared, providing() as providers, serving(shared, **providers.settings) as server:
        for found in ({**WHOLE, "payment_intent": None}, WHOLE, {**WHOLE, "payment_intent": "py_1"}):
            assert (await tell(server, "charge.refunded", found)).status == 204
        assert await stored(server) == (0, 0, 0)
        body, headers = signed_event("charge.refunded", {"payment_intent": 5})
        assert (await ask(server.url, "POST", WEBHOOK, body, headers=headers)).status == 400


@pytest.mark.gen_test
async def test_a_payment_that_went_back_before_it_was_used_buys_nothing(services: Services) -> None:
    """Also if the provider confirmed it just before: the statement that stores a purchase checks the refund again."""
    async with place(services) as shared, providing() as providers, serving(shared, **providers.settings) as server:
        alice = await Account().register(server.url)
        intent = providers.intent()
        assert (await tell(server, "charge.refunded", charge(providers, intent, **WHOLE))).status == 204
        assert not providers.intents[intent]["latest_charge"]["refunded"], "to the fake Stripe it is still good"
        answer = await buy(alice, purchase(alice, new_prid(), "stripe", intent))
        assert (answer.status, answer.code) == (402, "payment_required")
        assert await stored(server) == (0, 1, 0)


@pytest.mark.gen_test(timeout=120)
async def test_a_refund_that_races_with_the_purchase_wins(services: Services) -> None:
    async with place(services) as shared, providing() as providers, serving(shared, **providers.settings) as server:
        alice = await Account().register(server.url)
        for _ in range(20):
            intent = providers.intent()
            body = purchase(alice, new_prid(), "stripe", intent)
            bought, refunded = await asyncio.gather(
                buy(alice, body), tell(server, "charge.refunded", charge(providers, intent, **WHOLE))
            )
            assert (bought.status in (201, 402), refunded.status) == (True, 204), bought.text
            assert (await alice.get("/users/me")).json["tier"] == "free"


@pytest.mark.gen_test
async def test_time_that_was_paid_back_is_not_had_through_a_renewal(services: Services) -> None:
    async with place(services) as shared, providing() as providers, serving(shared, **providers.settings) as server:
        alice = await Account().register(server.url)
        now = datetime.now(UTC)
        first, second = providers.intent(), providers.intent()
        prids = [new_prid() for _ in range(4)]
        assert (await buy(alice, purchase(alice, prids[0], "stripe", first))).status == 201
        assert (await buy(alice, purchase(alice, prids[1], "stripe", second))).status == 201
        assert (await buy(alice, purchase(alice, prids[2], "voucher", await voucher(server, days=10)))).status == 201
        ultra = await voucher(server, "ultra", 100)
        assert (await buy(alice, purchase(alice, prids[3], "voucher", ultra, "ultra"))).status == 201

        async def ends() -> dict[int, int]:
            """The day on which each that is left ends."""
            found = (await alice.get("/subscriptions/restore")).json
            numbers = {hashed(prid): number for number, prid in enumerate(prids)}
            return {
                numbers[item["prid_hash"]]: round(
                    (datetime.fromisoformat(item["expires_at"]) - now) / timedelta(days=1)
                )
                for item in found
            }

        assert await ends() == {0: 30, 1: 60, 2: 70, 3: 100}
        # Ten days later the first one is refunded: its remaining twenty days are lost.
        await server.app.db.execute(
            """UPDATE subscriptions SET starts_at = starts_at - interval '10 days',
                                        expires_at = expires_at - interval '10 days'"""
        )
        async with alice.socket() as socket:
            assert (await tell(server, "charge.refunded", charge(providers, first, **WHOLE))).status == 204
            statuses = {(await socket.expect("subscription_updated"))["status"] for _ in range(3)}
            assert statuses == {"cancelled", "active"}
        assert await ends() == {1: 30, 2: 40, 3: 90}
        # One in the middle, of which nothing was used, takes all of its time.
        assert (await tell(server, "charge.refunded", charge(providers, second, **WHOLE))).status == 204
        assert await ends() == {2: 10, 3: 90}


@pytest.mark.gen_test
async def test_an_expired_subscription_loses_no_more_time(services: Services) -> None:
    async with place(services) as shared, providing() as providers, serving(shared, **providers.settings) as server:
        alice = await Account().register(server.url)
        intent, prids = providers.intent(), [new_prid(), new_prid()]
        assert (await buy(alice, purchase(alice, prids[0], "stripe", intent))).status == 201
        assert (await buy(alice, purchase(alice, prids[1], "voucher", await voucher(server)))).status == 201
        await server.app.db.execute(
            """UPDATE subscriptions SET starts_at = starts_at - interval '31 days',
                                        expires_at = expires_at - interval '31 days'"""
        )
        await subscriptions.expire(server.app.db)
        before = await server.app.db.fetch("SELECT starts_at, expires_at FROM subscriptions ORDER BY starts_at")
        assert (await tell(server, "charge.dispute.created", dispute(intent, "needs_response"))).status == 204
        assert await server.app.db.fetch("SELECT starts_at, expires_at FROM subscriptions ORDER BY starts_at") == before
        statuses = await server.app.db.fetch("SELECT status::text FROM subscriptions ORDER BY starts_at")
        assert [row[0] for row in statuses] == ["cancelled", "active"]
