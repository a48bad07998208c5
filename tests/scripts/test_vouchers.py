"""``python -m scripts.vouchers``: codes that are made, looked at and revoked, and what their buyers notice."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys

import pytest

from models import vouchers
from tests.client import Account
from tests.plugins.paying import buy, new_prid, purchase, stored
from tests.running import ROOT, Services, inherited, place, serving
from tests.scripts.program import script


@pytest.mark.gen_test(timeout=60)
async def test_codes_are_shown_once_and_buy_what_they_say(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        dry = await script(shared, "vouchers", "create", "--tier", "premium", "--days", "30", "--dry-run", "--json")
        assert dry.json == {"dry_run": True, "codes": 1}
        assert not await server.app.db.fetch("SELECT 1 FROM vouchers")
        made = await script(shared, "vouchers", "create", "--tier", "premium", "--days", "30", "--count", "2")
        assert (made.code, made.err) == (0, "")
        one, other = made.out.splitlines()
        assert re.fullmatch(r"([0-9A-Z]{5}-){3}[0-9A-Z]{5}", one)
        stored_ = await server.app.db.value("SELECT string_agg(v::text, '|') FROM vouchers v")
        assert all(code not in stored_ and code.replace("-", "") not in stored_ for code in (one, other))

        answer = await buy(alice, purchase(alice, new_prid(), "voucher", one.lower().replace("-", " ")))
        assert (answer.status, answer.json["tier"]) == (201, "premium"), answer.text
        listed = (await script(shared, "vouchers", "list", "--json")).json
        assert sorted((row["tier"], row["days"], row["state"]) for row in listed) == [
            ("premium", 30, "good"),
            ("premium", 30, "used"),
        ]
        assert listed[0].keys() == {
            "id", "tier", "days", "batch", "state", "created_at", "expires_at", "used_at", "revoked_at",
        }  # fmt: skip
        [found] = (await script(shared, "vouchers", "list", "--code", "--json", given=other)).json
        assert found["state"] == "good"
        for words in (["list"], ["list", "--json"], ["list", "--code"]):
            said = await script(shared, "vouchers", *words, given=other)
            assert said.code == 0
            assert one not in said.out and other not in said.out


@pytest.mark.gen_test(timeout=60)
async def test_revoked_codes_buy_nothing(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        create = ("create", "--tier", "ultra", "--days", "7", "--json")
        by_id, by_code = (await script(shared, "vouchers", *create, "--count", "2")).json
        batch = (await script(shared, "vouchers", *create, "--count", "3", "--batch", "leaked")).json
        [row] = (await script(shared, "vouchers", "list", "--code", "--json", given=by_id)).json
        foreseen = (await script(shared, "vouchers", "revoke", row["id"], "--dry-run", "--json")).json
        assert foreseen == {"dry_run": True, "revoked": 1, "used": 0, "cancelled": 0, "missing": 0}
        assert not await server.app.db.fetch("SELECT 1 FROM vouchers WHERE revoked_at IS NOT NULL")

        done = {"revoked": 1, "used": 0, "cancelled": 0, "missing": 0}
        for _ in range(2):
            assert (await script(shared, "vouchers", "revoke", row["id"], "--json")).json == done
        assert (await script(shared, "vouchers", "revoke", "-", "--json", given=f"{by_code}\n\n")).json == done
        ended = await script(shared, "vouchers", "revoke", "--batch", "leaked", "--json")
        assert ended.json == {**done, "revoked": 3}
        for code in (by_id, by_code, *batch):
            answer = await buy(alice, purchase(alice, new_prid(), "voucher", code, "ultra"))
            assert (answer.status, answer.code) == (402, "payment_required")
        assert len((await script(shared, "vouchers", "list", "--state", "revoked", "--json")).json) == 5


@pytest.mark.gen_test(timeout=60)
async def test_a_used_voucher_stays_used_unless_it_is_cancelled(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        [code] = (await script(shared, "vouchers", "create", "--tier", "ultra", "--days", "7", "--json")).json
        assert (await buy(alice, purchase(alice, new_prid(), "voucher", code, "ultra"))).status == 201
        done = {"revoked": 0, "used": 1, "cancelled": 0, "missing": 0}
        assert (await script(shared, "vouchers", "revoke", "-", "--json", given=code)).json == done
        assert (await alice.get("/users/me")).json["tier"] == "ultra"
        ended = await script(shared, "vouchers", "revoke", "-", "--cancel", "--json", given=code)
        assert ended.json == {**done, "cancelled": 1}
        assert (await alice.get("/users/me")).json["tier"] == "free"


@pytest.mark.gen_test(timeout=60)
async def test_fifty_purchases_beside_a_revocation(services: Services) -> None:
    """A code was bought with, or revoked, and never both."""
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        for number in range(10):
            [code] = await vouchers.create(server.app.db, "premium", 1, 1, batch=f"b{number}")
            before = (await stored(server))[0]
            bodies = [purchase(alice, new_prid(), "voucher", code) for _ in range(5)]
            *answers, [row] = await asyncio.gather(
                *(buy(alice, body) for body in bodies), vouchers.revoke(server.app.db, batch=f"b{number}")
            )
            bought = (await stored(server))[0] - before
            assert bought == [answer.status for answer in answers].count(201) <= 1
            assert row["state"] == ("used" if bought else "revoked")


@pytest.mark.gen_test(timeout=60)
async def test_codes_that_can_be_used_for_a_time(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        create = ("create", "--tier", "premium", "--days", "30", "--valid-days", "5", "--json")
        [code] = (await script(shared, "vouchers", *create)).json
        await server.app.db.execute("UPDATE vouchers SET expires_at = expires_at - interval '5 days'")
        assert (await buy(alice, purchase(alice, new_prid(), "voucher", code))).status == 402
        assert len((await script(shared, "vouchers", "list", "--state", "expired", "--json")).json) == 1


@pytest.mark.gen_test(timeout=60)
async def test_wrong_usage_and_what_is_not_there(services: Services) -> None:
    async with place(services) as shared:
        for words in (
            [],
            ["create"],
            ["create", "--tier", "free", "--days", "30"],
            ["create", "--tier", "premium", "--days", "0"],
            ["create", "--tier", "premium", "--days", "3661"],
            ["create", "--tier", "premium", "--days", "30", "--count", "10001"],
            ["create", "--tier", "premium", "--days", "30", "--batch", ""],
            ["revoke"],
            ["revoke", "x", "--batch", "y"],
            ["list", "--state", "odd"],
        ):
            assert (await script(shared, "vouchers", *words)).code == 2, words
        ended = await script(shared, "vouchers", "revoke", "no id", "7Q2KD-0M3HX-V8TNB-4RY8F", "--json")
        assert (ended.code, ended.json["missing"]) == (1, 2)
        assert (await script(shared, "vouchers", "revoke", "--batch", "nothing")).code == 1
        ended = await script(shared, "vouchers", "list", "--code", given="7Q2KD-0M3HX-V8TNB-4R6CW")
        assert (ended.code, ended.out) == (1, "")
        assert "typing errors" in ended.err
        said = await script(None, "vouchers", "--help")
        assert all(word in said.out for word in ("create", "list", "revoke", "DATABASE_URL", "78"))
        failed = await script(shared, "vouchers", "list", DATABASE_URL="postgres://mimu:never-shown@127.0.0.1:1/mimu")
        assert (failed.code, failed.out, failed.err[:7]) == (1, "", "failed:")


def test_they_are_made_by_the_path_of_the_script_as_well() -> None:
    """``python scripts/vouchers.py``, as the description of the product has it."""
    command = [sys.executable, "scripts/vouchers.py", "create", "--tier", "premium", "--days", "30", "--dry-run"]
    environment = {**inherited("PATH"), "PYTHONDONTWRITEBYTECODE": "1", "DATABASE_URL": "postgres://h/x"}
    ended = subprocess.run([*command, "--env-file", os.devnull], cwd=ROOT, env=environment, capture_output=True)
    assert (ended.returncode, ended.stderr[:7]) == (1, b"failed:"), ended.stderr
