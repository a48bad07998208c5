"""Payments: what each provider may say of one, and that nothing is granted for anything but a whole, unused payment."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from server import Server
from tests.client import Account, ask
from tests.plugins.paying import PRICES, Providers, buy, new_prid, providing, purchase, stored, voucher
from tests.running import Place, Services, place, serving
from tests.waiting import SLACK

METHODS = ("voucher", "stripe", "crypto")


class Shop:
    """A server, the providers that it asks, and a buyer."""

    def __init__(self, server: Server, place_: Place, providers: Providers, owner: Account) -> None:
        self.server, self.place, self.providers, self.owner = server, place_, providers, owner

    async def paid(self, method: str, tier: str = "premium") -> str:
        """A payment that is as it should be."""
        if method == "voucher":
            return await voucher(self.server, tier)
        return self.providers.intent(tier) if method == "stripe" else self.providers.invoice(tier)


@contextlib.asynccontextmanager
async def shop(services: Services, **settings: str) -> AsyncIterator[Shop]:
    async with (
        place(services) as shared,
        providing() as providers,
        serving(
            shared, **{name: value for name, value in {**providers.settings, **settings}.items() if value}
        ) as server,
    ):
        yield Shop(server, shared, providers, await Account().register(server.url))


async def other_tier(shop: Shop, method: str) -> str:
    if method == "voucher":
        return await voucher(shop.server, "ultra")
    # Of the price that is asked for, but made for another tier; without this mark only the amount would tell.
    meant = {"metadata": {"mimu_tier": "ultra"}}
    return shop.providers.intent(**meant) if method == "stripe" else shop.providers.invoice(**meant)


async def refunded(shop: Shop, method: str) -> str:
    if method == "voucher":
        code = await voucher(shop.server)
        await shop.server.app.db.execute("UPDATE vouchers SET revoked_at = now()")
        return code
    if method == "stripe":
        return shop.providers.intent(charge={"refunded": True, "amount_refunded": 499})
    return shop.providers.invoice(status="Invalid", additionalStatus="Marked")  # what a merchant can say of a refund


async def expired_code(shop: Shop) -> str:
    code = await voucher(shop.server)
    await shop.server.app.db.execute("UPDATE vouchers SET expires_at = now()")
    return code


async def mistyped(shop: Shop) -> str:
    code = await voucher(shop.server)
    return ("1" if code[0] == "0" else "0") + code[1:]


# Payments that are none, and each provider's own ways to say so.
UNPAID: dict[str, dict[str, Callable[[Shop], Awaitable[str] | str]]] = {
    "voucher": {
        "unpaid": lambda shop: "0000000000-0000000000",
        "unknown": lambda shop: "7Q2KD-0M3HX-V8TNB-4RY8F",
        "wrong amount": mistyped,
        "expired": expired_code,
        "wrong tier": lambda shop: other_tier(shop, "voucher"),
        "refunded": lambda shop: refunded(shop, "voucher"),
        "garbage": lambda shop: "'; DROP TABLE vouchers; --",
        "odd letters": lambda shop: "ßſ٣" * 10,
    },
    "stripe": {
        "unpaid": lambda shop: shop.providers.intent(
            status="requires_payment_method", amount_received=0, latest_charge=None
        ),
        "under way": lambda shop: shop.providers.intent(status="processing", amount_received=0),
        "not captured": lambda shop: shop.providers.intent(status="requires_capture", amount_received=0),
        "canceled": lambda shop: shop.providers.intent(status="canceled", amount_received=0),
        "unknown": lambda shop: "pi_3MtwBwLkdIwHu7ix28a3tqPa",
        "wrong amount": lambda shop: shop.providers.intent(amount=498, amount_received=498),
        "in part": lambda shop: shop.providers.intent(amount_received=498),
        "wrong currency": lambda shop: shop.providers.intent(currency="jpy"),
        "wrong tier": lambda shop: other_tier(shop, "stripe"),
        "the price of another tier": lambda shop: shop.providers.intent("ultra"),
        "refunded": lambda shop: refunded(shop, "stripe"),
        "refunded in part": lambda shop: shop.providers.intent(charge={"amount_refunded": 1}),
        "disputed": lambda shop: shop.providers.intent(charge={"disputed": True}),
        "garbage": lambda shop: "../charges/ch_1?x=",
        "client secret": lambda shop: shop.providers.intents[shop.providers.intent()]["client_secret"],
        "another thing": lambda shop: "cs_test_a1b2c3d4e5f6",
    },
    "crypto": {
        "unpaid": lambda shop: shop.providers.invoice(status="New"),
        "under way": lambda shop: shop.providers.invoice(status="Processing"),
        "in part": lambda shop: shop.providers.invoice(status="Expired", additionalStatus="PaidPartial"),
        "late": lambda shop: shop.providers.invoice(status="Expired", additionalStatus="PaidLate"),
        "unknown": lambda shop: "DpLHMdcnhrHTPCnWfE98",
        "wrong amount": lambda shop: shop.providers.invoice(amount="4.98"),
        "wrong currency": lambda shop: shop.providers.invoice(currency="USD"),
        "wrong tier": lambda shop: other_tier(shop, "crypto"),
        "the price of another tier": lambda shop: shop.providers.invoice("ultra"),
        "refunded": lambda shop: refunded(shop, "crypto"),
        "another store": lambda shop: shop.providers.invoice(storeId="AnotherStore"),
        "garbage": lambda shop: "../../users/me#x",
        "a wildcard": lambda shop: "%2e%2e%2f%2e%2e",
    },
}
ROWS = [(method, row) for method, rows in UNPAID.items() for row in rows]


@pytest.mark.gen_test
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tier", PRICES)
async def test_good(services: Services, method: str, tier: str) -> None:
    async with shop(services) as it:
        answer = await buy(it.owner, purchase(it.owner, new_prid(), method, await it.paid(method, tier), tier))
        assert (answer.status, answer.json["tier"], answer.json["status"]) == (201, tier, "active"), answer.text
        assert answer.json.keys() == {"subscription_id", "tier", "activated_at", "expires_at", "status"}
        assert await stored(it.server) == (1, 1, method == "voucher")
        assert (await it.owner.get("/users/me")).json["tier"] == tier


@pytest.mark.gen_test(timeout=120)
@pytest.mark.parametrize("method", METHODS)
async def test_every_unpaid_purchase_gets_the_same_error_and_stores_nothing(services: Services, method: str) -> None:
    async with shop(services) as it:
        messages = set()
        for row, payment in UNPAID[method].items():
            found = payment(it)
            proof = found if isinstance(found, str) else await found
            answer = await buy(it.owner, purchase(it.owner, new_prid(), method, proof))
            assert (answer.status, answer.code) == (402, "payment_required"), (row, answer.text)
            messages.add(answer.json["message"])
            assert await stored(it.server) == (0, 0, 0), row
        assert len(messages) == 1
        assert (await it.owner.get("/users/me")).json["tier"] == "free"


def test_the_table_has_all_rows_for_all_providers() -> None:
    """{good, reused, provider down, timeout} have separate tests for each provider."""
    for rows in UNPAID.values():
        assert {"unpaid", "wrong amount", "wrong tier", "refunded", "garbage"} <= rows.keys()


@pytest.mark.gen_test
@pytest.mark.parametrize("method", METHODS)
async def test_reused(services: Services, method: str) -> None:
    async with shop(services) as it:
        proof, prid = await it.paid(method), new_prid()
        first = await buy(it.owner, purchase(it.owner, prid, method, proof))
        assert first.status == 201
        asked = len(it.providers.asked)

        again = await buy(it.owner, purchase(it.owner, prid, method, proof))
        assert (again.status, again.json) == (200, first.json)

        mallory = await Account().register(it.server.url)
        for body in (
            purchase(it.owner, new_prid(), method, proof),  # the payment, for another PRID
            purchase(mallory, new_prid(), method, proof),  # for somebody else
            purchase(it.owner, prid, method, await it.paid(method)),  # the PRID, with another payment
            purchase(mallory, prid, method, proof),  # both, for somebody else
            purchase(it.owner, prid, method, proof, "ultra"),
        ):
            refused = await buy(it.owner, body)
            assert (refused.status, refused.code) == (409, "conflict"), refused.text
        assert await stored(it.server) == (1, 1, method == "voucher")
        assert len(it.providers.asked) == asked, "no provider is asked for what is known"


@contextlib.asynccontextmanager
async def away(it: Shop, method: str, mood: str) -> AsyncIterator[None]:
    """The provider is away: for vouchers that is our own database."""
    if method != "voucher":
        it.providers.mood = mood
        yield
        it.providers.mood = "good"
        return
    connection = await asyncpg.connect(it.place.dsn)
    try:
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM vouchers FOR UPDATE")  # who wants to use it up has to wait
            ending = asyncio.ensure_future(_end_those_that_wait(it.place.dsn)) if mood == "down" else None
            yield
            if ending is not None:
                assert await ending
    finally:
        await connection.close()


async def _end_those_that_wait(dsn: str) -> bool:
    """As a PostgreSQL that is shut down does, in the middle of a purchase."""
    connection = await asyncpg.connect(dsn)
    try:
        while True:
            waiting = "datname = current_database() AND wait_event_type = 'Lock'"
            if await connection.fetch(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {waiting}"):
                return True
            await asyncio.sleep(0.05)
    finally:
        await connection.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("method", "mood"),
    [
        ("voucher", "down"),
        ("voucher", "hang"),
        *((m, mood) for m in ("stripe", "crypto") for mood in ("down", "away", "hang", "busy", "refusing")),
        # Garbage from the provider, where UNPAID has garbage from the client.
        *((m, mood) for m in ("stripe", "crypto") for mood in ("page", "cut", "empty", "list", "text")),
    ],
)
async def test_a_provider_that_is_away_or_talks_nonsense(services: Services, method: str, mood: str) -> None:
    """503, in time, nothing stored; and the same purchase goes through when the provider is back."""
    async with shop(services) as it:
        body = purchase(it.owner, new_prid(), method, await it.paid(method))
        started = time.monotonic()
        async with away(it, method, mood):
            answer = await buy(it.owner, body)
            assert (answer.status, answer.code) == (503, "unavailable"), answer.text
            assert answer.headers["Retry-After"]
            assert time.monotonic() - started < 3 + SLACK
        assert len(it.providers.asked) <= 2, "bounded retries"
        assert await stored(it.server) == (0, 0, 0)
        assert (await buy(it.owner, body)).status == 201


@pytest.mark.gen_test
@pytest.mark.parametrize("method", ["stripe", "crypto"])
async def test_a_provider_that_stumbles_once_is_asked_again(services: Services, method: str) -> None:
    async with shop(services) as it:
        it.providers.mood, it.providers.recovers_after = "down", 1
        answer = await buy(it.owner, purchase(it.owner, new_prid(), method, await it.paid(method)))
        assert (answer.status, len(it.providers.asked)) == (201, 2), answer.text


@pytest.mark.gen_test
@pytest.mark.parametrize("method", ["stripe", "crypto"])
async def test_a_closed_port_of_a_provider_is_an_outage(services: Services, method: str) -> None:
    nowhere = {"STRIPE_BASE_URL": "http://127.0.0.1:9", "BTCPAY_BASE_URL": "http://127.0.0.1:9"}
    async with shop(services, **nowhere) as it:
        answer = await buy(it.owner, purchase(it.owner, new_prid(), method, await it.paid(method)))
        assert (answer.status, answer.code) == (503, "unavailable")
        assert await stored(it.server) == (0, 0, 0)


@pytest.mark.gen_test
@pytest.mark.parametrize("method", ["stripe", "crypto"])
async def test_a_key_that_the_provider_does_not_take_is_the_operator_s_affair(services: Services, method: str) -> None:
    wrong = {"STRIPE_SECRET_KEY": "sk_test_of_somebody_else", "BTCPAY_API_KEY": "somebody else's"}
    async with shop(services, **wrong) as it:
        answer = await buy(it.owner, purchase(it.owner, new_prid(), method, await it.paid(method)))
        assert (answer.status, answer.code) == (503, "unavailable")
        assert len(it.providers.asked) == 1, "asking again would not help"


@pytest.mark.gen_test
async def test_methods_that_are_not_configured(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        for method, proof in (("stripe", "pi_3MtwBwLkdIwHu7ix28a3tqPa"), ("crypto", "DpLHMdcnhrHTPCnWfE98")):
            answer = await buy(alice, purchase(alice, new_prid(), method, proof))
            assert (answer.status, answer.code) == (422, "payment_method_unavailable")
        webhook = await ask(server.url, "POST", "/subscriptions/webhooks/stripe", {})
        assert (webhook.status, webhook.code) == (422, "payment_method_unavailable")


@pytest.mark.gen_test
async def test_a_tier_without_a_price_is_for_vouchers_only(services: Services) -> None:
    async with shop(services, TIER_ULTRA_PRICE="") as it:
        answer = await buy(it.owner, purchase(it.owner, new_prid(), "stripe", it.providers.intent("ultra"), "ultra"))
        assert (answer.status, answer.code) == (422, "payment_method_unavailable")
        assert (
            await buy(it.owner, purchase(it.owner, new_prid(), "voucher", await voucher(it.server, "ultra"), "ultra"))
        ).status == 201
        offers = (await ask(it.server.url, "GET", "/subscriptions/tiers")).json
        assert [offer["payment_methods"] for offer in offers] == [[], ["voucher", "stripe", "crypto"], ["voucher"]]
