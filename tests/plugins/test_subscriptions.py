"""Subscriptions: bought once with the owner's signature, restored, extended and expired."""

from __future__ import annotations

import asyncio
import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from models import vouchers
from tests.client import Account, ask, b64
from tests.plugins.paying import (
    PRICES,
    buy,
    hashed,
    new_prid,
    providing,
    purchase,
    stored,
    validate,
    voucher,
)
from tests.running import ROOT, Services, connected, periodic, place, serving

NO = {"valid": False, "tier": None, "expires_at": None}


def moment(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


def near(found: datetime, wanted: datetime) -> bool:
    return abs(found - wanted) < timedelta(seconds=20)


# Purchases ------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_only_the_owner_s_signature_buys_and_every_other_is_one_answer(services: Services) -> None:
    async with place(services) as shared, providing() as providers, serving(shared, **providers.settings) as server:
        alice = await Account().register(server.url)
        mallory = await Account().register(server.url)
        unregistered = Account(url=server.url)
        prid, proof = new_prid(), providers.intent()
        good = purchase(alice, prid, "stripe", proof)
        other = new_prid()
        messages = set()
        for body in (
            purchase(unregistered, prid, "stripe", proof),  # no such fingerprint
            {**good, "signature": purchase(mallory, prid, "stripe", proof)["signature"]},  # somebody else's
            {**good, "user_fingerprint": mallory.fingerprint},
            {**good, "subscription_tier": "ultra"},
            {**good, "prid_hash": hashed(other)},
            {**good, "signature": b64(alice.signing.sign(f"mimu-sub-validate-v1|{prid}".encode()).signature)},
            {**good, "signature": b64(bytes(64))},
            {**purchase(unregistered, prid, "crypto", "no such invoice at all")},  # before the payment is looked at
        ):
            answer = await buy(alice, body)
            assert (answer.status, answer.code) == (403, "invalid_signature"), answer.text
            messages.add(answer.json["message"])
        assert len(messages) == 1
        assert providers.asked == []
        assert await stored(server) == (0, 0, 0)
        assert (await buy(alice, good)).status == 201


@pytest.mark.gen_test
async def test_invalid_fields_of_a_purchase_are_refused(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        good = purchase(alice, new_prid(), "voucher", await voucher(server))
        for field, values in {
            "prid_hash": [good["prid_hash"][:-1], 5, None, good["prid_hash"] + "\n"],
            "subscription_tier": ["free", "Premium", "", None],
            "user_fingerprint": [alice.fingerprint[:-1], "", {}],
            "signature": ["", "AAAA", b64(bytes(63)), 1],
            "payment_proof": ["", "x" * 257, 17, None],
            "payment_method": ["paypal", "Stripe", "", None],
        }.items():
            for value in values:
                answer = await buy(alice, {**good, field: value})
                assert (answer.status, answer.fields()) == (400, [field]), (field, value)
            missing = {name: value for name, value in good.items() if name != field}
            assert (await buy(alice, missing)).fields() == [field]
        assert await stored(server) == (0, 0, 0)
        assert (await buy(alice, good)).status == 201


@pytest.mark.gen_test
async def test_a_token_that_is_sent_must_be_good_and_needs_not_be_the_owner_s(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        bob = await Account().register(server.url)
        body = purchase(alice, new_prid(), "voucher", await voucher(server))
        assert (await ask(server.url, "POST", "/subscriptions/purchase", body, token="a.b.c")).status == 401
        assert (await bob.post("/subscriptions/purchase", body)).status == 201
        assert [(await who.get("/users/me")).json["tier"] for who in (alice, bob)] == ["premium", "free"]


@pytest.mark.gen_test
async def test_the_guide_s_example_is_signed_and_hashed_as_the_server_does(services: Services) -> None:
    guide = (ROOT / "docs/subscriptions.md").read_text()
    [prid] = re.findall(r"^PRID +(\S+)$", guide, re.MULTILINE)
    [digest] = re.findall(r"^prid_hash +(\S+)$", guide, re.MULTILINE)
    [bought] = re.findall(r"^a purchase signs +(\S+)$", guide, re.MULTILINE)
    [validated] = re.findall(r"^validating signs +(\S+)$", guide, re.MULTILINE)
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        signature = b64(alice.signing.sign(bought.encode()).signature)
        body = purchase(alice, prid, "voucher", await voucher(server), prid_hash=digest, signature=signature)
        assert (await buy(alice, body)).status == 201
        assert (await validate(alice, prid, validated))["valid"] is True
    [code] = set(re.findall(r"`([0-9A-Z]{5}(?:-[0-9A-Z]{5}){3})`", guide))
    assert vouchers.read(code), "an example of a code has a good checksum"


# Once -----------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=120)
async def test_fifty_at_once_with_one_voucher_make_one_subscription(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as other:
        people = [await Account().register(server.url) for server in (one, other) for _ in range(5)]
        for _ in range(3):
            code, before = await voucher(one), await stored(one)
            bodies = [purchase(person, new_prid(), "voucher", code) for person in people for _ in range(5)]
            owners = [person for person in people for _ in range(5)]
            answers = await asyncio.gather(*(buy(owner, body) for owner, body in zip(owners, bodies, strict=True)))
            assert sorted(answer.status for answer in answers) == [201] + [409] * 49
            assert await stored(one) == tuple(number + 1 for number in before)


@pytest.mark.gen_test(timeout=120)
async def test_fifty_of_the_same_purchase_are_one(services: Services) -> None:
    async with (
        place(services) as shared,
        providing() as providers,
        serving(shared, **providers.settings) as server,
    ):
        alice = await Account().register(server.url)
        for method, proof in (("voucher", await voucher(server)), ("stripe", providers.intent())):
            before = await stored(server)
            body = purchase(alice, new_prid(), method, proof)
            answers = await asyncio.gather(*(buy(alice, body) for _ in range(50)))
            assert sorted(answer.status for answer in answers) == [200] * 49 + [201]
            assert len({answer.text for answer in answers}) == 1
            assert (await stored(server))[:2] == (before[0] + 1, before[1] + 1)


@pytest.mark.gen_test
async def test_a_prid_that_is_taken_costs_no_voucher(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        prid, codes = new_prid(), [await voucher(server) for _ in range(20)]
        answers = await asyncio.gather(*(buy(alice, purchase(alice, prid, "voucher", code)) for code in codes))
        assert sorted(answer.status for answer in answers) == [201] + [409] * 19
        assert await stored(server) == (1, 1, 1)


@pytest.mark.gen_test
async def test_a_repetition_needs_no_provider_and_tells_what_became_of_it(services: Services) -> None:
    async with place(services) as shared:
        async with providing() as providers, serving(shared, **providers.settings) as server:
            alice = await Account().register(server.url)
            body = purchase(alice, new_prid(), "stripe", providers.intent())
            first = await buy(alice, body)
            providers.mood = "down"
            assert (await buy(alice, body)).json == first.json
        async with serving(shared) as server:  # that sells by vouchers only, now
            alice.url = server.url
            again = await buy(alice, body)
            assert (again.status, again.json) == (200, first.json)
            await server.app.db.execute("UPDATE subscriptions SET expires_at = now()")
            again = await buy(alice, body)
            assert (again.status, again.json["status"]) == (200, "expired")


# How long -------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_renewal_begins_where_the_last_one_ends(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        now = datetime.now(UTC)

        async def bought(days: int, tier: str = "premium") -> datetime:
            code = await voucher(server, tier, days)
            answer = await buy(alice, purchase(alice, new_prid(), "voucher", code, tier))
            assert near(moment(answer.json["activated_at"]), now)
            return moment(answer.json["expires_at"])

        assert near(await bought(30), now + timedelta(days=30))
        assert near(await bought(7), now + timedelta(days=37))
        assert near(await bought(10, "ultra"), now + timedelta(days=10)), "another tier runs beside it"
        await server.app.db.execute("UPDATE subscriptions SET expires_at = now() - interval '1 hour'")
        assert near(await bought(5), now + timedelta(days=5)), "what is over is not prolonged"
        other = await Account().register(server.url)
        code = await voucher(server)
        answer = await buy(other, purchase(other, new_prid(), "voucher", code))
        assert near(moment(answer.json["expires_at"]), now + timedelta(days=30)), "nor what is somebody else's"


@pytest.mark.gen_test
async def test_renewals_at_once_lose_no_day(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        now = datetime.now(UTC)
        bodies = [purchase(alice, new_prid(), "voucher", await voucher(server, days=10)) for _ in range(10)]
        answers = await asyncio.gather(*(buy(alice, body) for body in bodies))
        ends = sorted(moment(answer.json["expires_at"]) for answer in answers)
        assert all(near(end, now + timedelta(days=10 * place)) for place, end in enumerate(ends, 1))


# Asking ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_restore_gives_what_is_paid_for_by_the_fingerprint_as_it_is_stored(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        bob = await Account().register(server.url)
        assert (await alice.get("/subscriptions/restore")).json == []
        prids = [new_prid() for _ in range(3)]
        bought = [
            (await buy(alice, purchase(alice, prid, "voucher", await voucher(server, tier), tier))).json
            for prid, tier in zip(prids, ("premium", "ultra", "premium"), strict=True)
        ]
        items = (await alice.get("/subscriptions/restore")).json
        assert [item["prid_hash"] for item in items] == [hashed(prid) for prid in reversed(prids)]
        assert items == [
            {**one, "prid_hash": hashed(prid)} for one, prid in reversed(list(zip(bought, prids, strict=True)))
        ]
        assert (await bob.get("/subscriptions/restore")).json == []
        # Not what looks like it, and not what is over.
        set_ = "UPDATE subscriptions SET {} WHERE prid_hash = $1"
        await server.app.db.execute(set_.format("user_fingerprint = reverse(user_fingerprint)"), hashed(prids[0]))
        await server.app.db.execute(set_.format("expires_at = now()"), hashed(prids[1]))
        await server.app.db.execute(set_.format("status = 'cancelled'"), hashed(prids[2]))
        assert (await alice.get("/subscriptions/restore")).json == []
        assert (await ask(server.url, "GET", "/subscriptions/restore")).status == 401


@pytest.mark.gen_test
async def test_subscriptions_outlive_the_account_for_a_user_with_the_same_key(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        prid = new_prid()
        assert (await buy(alice, purchase(alice, prid, "voucher", await voucher(server)))).status == 201
        assert (await ask(server.url, "DELETE", "/users/me", {"password": alice.password}, alice.token)).status == 204
        assert await validate(alice, prid) == NO
        back = {"public_id": "u_comes_back", "signed_prekey": alice.libsignal_prekey(1)}
        await alice.register(server.url, **back)
        assert [item["prid_hash"] for item in (await alice.get("/subscriptions/restore")).json] == [hashed(prid)]
        assert (await validate(alice, prid))["valid"] is True
        assert (await alice.get("/users/me")).json["tier"] == "premium"


@pytest.mark.gen_test
async def test_a_prid_in_capitals_is_hashed_and_signed_as_it_is_sent(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        prid = new_prid()
        for text in (prid.upper(), prid):
            digest = hashlib.sha256(text.encode()).hexdigest()
            message = f"mimu-sub-v1|{digest.upper()}|premium".encode()  # as Swift writes hexadecimal digits
            body = purchase(alice, prid, "voucher", await voucher(server), prid_hash=digest.upper())
            body |= {"signature": b64(alice.signing.sign(message).signature)}
            assert (await buy(alice, {**body, "user_fingerprint": alice.fingerprint.upper()})).status == 201
            assert (await buy(alice, body)).status == 200
            for said in (f"mimu-sub-validate-v1|{text}", message.decode()):
                assert (await validate(alice, text, said))["valid"] is True
            await server.app.db.execute("DELETE FROM subscriptions")


@pytest.mark.gen_test
async def test_validate_says_yes_to_the_owner_and_one_no_to_everything_else(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        mallory = await Account().register(server.url)
        prid = new_prid()
        bought = await buy(alice, purchase(alice, prid, "voucher", await voucher(server, "ultra"), "ultra"))
        yes = {"valid": True, "tier": "ultra", "expires_at": bought.json["expires_at"]}
        of_purchase = f"mimu-sub-v1|{hashed(prid)}|ultra"
        assert await validate(alice, prid) == yes
        assert await validate(alice, prid, of_purchase) == yes, "as older clients ask"
        for form in (prid.upper(), UUID(prid).hex, f"{{{prid}}}", f"urn:uuid:{prid}"):
            assert await validate(alice, form, f"mimu-sub-validate-v1|{prid}") == yes, form

        for who, asked, message in (
            (mallory, prid, None),
            (mallory, prid, of_purchase),
            (alice, new_prid(), None),
            (alice, prid, f"mimu-sub-validate-v1|{prid.upper()}"),
            (alice, prid, f"mimu-sub-v1|{hashed(prid)}|premium"),
            (alice, prid, f"mimu-sub-v1|{hashed(prid)}|free"),
            (alice, prid, prid),
        ):
            assert await validate(who, asked, message) == NO
        for change in ("expires_at = now()", "expires_at = now() + interval '1 day', status = 'cancelled'"):
            await server.app.db.execute(f"UPDATE subscriptions SET {change}")
            assert await validate(alice, prid) == NO

        for field, values in {"prid": ["", "x", prid[:-1], 5, None], "signature": ["", "AAAA", None]}.items():
            for value in values:
                body = {"prid": prid, "signature": b64(bytes(64)), field: value}
                answer = await ask(server.url, "POST", "/subscriptions/validate", body)
                assert (answer.status, answer.fields()) == (400, [field])


@pytest.mark.gen_test
async def test_the_offers_are_public(services: Services) -> None:
    async with place(services) as shared:
        async with serving(shared) as server:
            assert (await ask(server.url, "GET", "/subscriptions/tiers")).json == [
                _offer("free", 50 << 20, 1 << 30, None, []),
                _offer("premium", 500 << 20, 20 << 30, None, ["voucher"]),
                _offer("ultra", 2 << 30, 100 << 30, None, ["voucher"]),
            ]
        settings = {"TIER_ULTRA_PRICE": "1500 JPY/365 days", "TIER_FREE_FILE_BYTES": "0.5 MiB"}
        async with providing() as providers, serving(shared, **{**providers.settings, **settings}) as server:
            free, premium, ultra = (await ask(server.url, "GET", "/subscriptions/tiers")).json
            assert free["limits"]["file_bytes"] == 1 << 19
            assert premium["price"] == {"amount": PRICES["premium"][0], "currency": "EUR", "days": 30}
            assert ultra["price"] == {"amount": "1500", "currency": "JPY", "days": 365}
            assert premium["payment_methods"] == ultra["payment_methods"] == ["voucher", "stripe", "crypto"]


def _offer(tier: str, file_bytes: int, total_bytes: int, price: Any, methods: list[str]) -> dict[str, Any]:
    limits = {"file_bytes": file_bytes, "total_bytes": total_bytes}
    return {"tier": tier, "limits": limits, "price": price, "payment_methods": methods}


# Ending ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_expiry_is_judged_when_read_and_written_down_once_with_word_to_the_owner(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as other:
        alice = await Account().register(one.url)
        bob = await Account().register(one.url)
        prid = new_prid()
        async with alice.socket() as here, alice.socket(other.url) as there, bob.socket() as not_his:
            bought = (await buy(alice, purchase(alice, prid, "voucher", await voucher(one)))).json
            for socket in (here, there):
                assert await socket.expect("subscription_updated") == {"type": "subscription_updated", **bought}
            await one.app.db.execute("UPDATE subscriptions SET expires_at = now()")

            assert (await alice.get("/users/me")).json["tier"] == "free"
            assert (await alice.get("/subscriptions/restore")).json == []
            assert await validate(alice, prid) == NO

            await asyncio.gather(*(periodic(server, "subscriptions")() for server in (one, other)))
            for socket in (here, there):
                frame = await socket.expect("subscription_updated")
                assert (frame["subscription_id"], frame["status"]) == (bought["subscription_id"], "expired")
                await socket.silent()
            assert not_his.frames == []
        assert await one.app.db.value("SELECT status::text FROM subscriptions") == "expired"


@pytest.mark.gen_test
async def test_many_that_end_at_once_are_all_marked(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server, connected(shared) as filling:
        await filling.execute(
            """INSERT INTO subscriptions (prid_hash, user_fingerprint, tier, signature, expires_at)
               SELECT encode(sha256(n::text::bytea), 'hex'), encode(sha256('nobody'), 'hex'), 'premium',
                      sha512(n::text::bytea), now() + make_interval(secs => n - 1201)
               FROM generate_series(1, 1300) AS n"""
        )
        await periodic(server, "subscriptions")()
        rows = await server.app.db.fetch("SELECT status::text, count(*) FROM subscriptions GROUP BY 1 ORDER BY 1")
        assert [tuple(row) for row in rows] == [("active", 99), ("expired", 1201)]


# Limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_purchases_and_validations_are_limited_by_address(services: Services) -> None:
    limits = {"RATE_LIMITS": "on", "RATE_LIMIT_PURCHASE": "3/hour", "RATE_LIMIT_VALIDATE": "4/minute"}
    async with place(services) as shared, serving(shared, **limits) as server:
        alice = await Account().register(server.url)
        body = purchase(alice, new_prid(), "voucher", "0000000000-0000000000")
        assert [(await buy(alice, body)).status for _ in range(4)] == [402, 402, 402, 429]
        asked = {"prid": new_prid(), "signature": b64(bytes(64))}
        answers = [await ask(server.url, "POST", "/subscriptions/validate", asked) for _ in range(5)]
        assert [answer.status for answer in answers] == [200] * 4 + [429]
        assert answers[-1].headers["Retry-After"]


# Privacy --------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_nothing_that_is_stored_or_logged_links_a_subscription_to_a_user(services: Services, log: Any) -> None:
    async with place(services) as shared, providing() as providers, serving(shared, **providers.settings) as server:
        alice = await Account().register(server.url)
        prid = new_prid()
        secret = []
        async with alice.socket():
            for method, proof in (
                ("voucher", await voucher(server)),
                ("stripe", providers.intent()),
                ("crypto", providers.invoice()),
            ):
                own = prid if method == "voucher" else new_prid()
                body = purchase(alice, own, method, proof)
                answer = await alice.post("/subscriptions/purchase", body)
                assert answer.status == 201
                secret += [own, hashed(own), proof, body["signature"], answer.json["subscription_id"]]
            assert (await validate(alice, prid))["valid"] is True
            assert len((await alice.get("/subscriptions/restore")).json) == 3
            await server.app.db.execute("UPDATE subscriptions SET expires_at = now()")
            await periodic(server, "subscriptions")()

        # No column for it, no foreign key either way, and the ids of users and sessions in no row.
        columns = await server.app.db.fetch(
            """SELECT table_name || '.' || column_name FROM information_schema.columns
               WHERE table_name IN ('subscriptions', 'spent_proofs', 'vouchers') AND column_name LIKE '%user%'"""
        )
        assert [row[0] for row in columns] == ["subscriptions.user_fingerprint"]
        assert not await server.app.db.fetch(
            """SELECT conname FROM pg_constraint WHERE contype = 'f' AND (conrelid::regclass::text IN
               ('subscriptions', 'vouchers', 'spent_proofs') OR confrelid::regclass::text IN
               ('subscriptions', 'vouchers', 'spent_proofs'))"""
        )
        tables = [
            row[0]
            for row in await server.app.db.fetch(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
            )
        ]
        for table in tables:
            text = await server.app.db.value(f"SELECT string_agg(t::text, '|') FROM {table} t") or ""
            if table in ("subscriptions", "spent_proofs", "vouchers"):
                for known in (alice.user_id, alice.session_id, alice.public_id):
                    assert known not in text, table
            else:
                for known in secret:
                    assert known not in text, table
        # Not the proof, nor the PRID, but what they hash to.
        rows = await server.app.db.value("SELECT string_agg(t::text, '|') FROM subscriptions t")
        for plain in (prid, *providers.intents, *providers.invoices):
            assert plain not in rows
        # The log names no user and no purchase, not even that one was made.
        lines = log.getvalue()
        for known in (
            *secret,
            alice.user_id,
            alice.public_id,
            alice.fingerprint,
            hashlib.sha256(prid.encode()).hexdigest(),
        ):
            assert known not in lines
        keys = await server.app.redis.keys("*")
        assert not [key for key in keys if any(known.encode() in key for known in (*secret, alice.fingerprint))]
