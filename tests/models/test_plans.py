"""Ordinary queries find their rows by an index, as peewee writes them and in one plan for all parameters."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from models import accounts, calls, contacts, files, prekeys, push, sessions, tombstones, users
from models.chats import chats, invites, pins, sanctions, views
from models.database import Database
from models.postgres.orm import numbered
from tests.running import Services, place


class Explaining:
    """A database that explains peewee's queries instead of running them. Nothing is ever found in it."""

    def __init__(self, db: Database) -> None:
        self._db, self.plans = db, list[str]()

    async def rows(self, query: Any) -> list[Any]:
        sql, parameters = self._db._orm.get_sql_context().sql(query).query()
        plan = await self._db.fetch("EXPLAIN " + numbered(sql), *parameters)
        self.plans.append("\n".join([numbered(sql), *(row[0] for row in plan)]))
        return []

    async def one(self, query: Any) -> None:
        await self.rows(query)

    scalar = one

    async def exists(self, query: Any) -> bool:
        return bool(await self.rows(query))

    async def do(self, query: Any) -> int:
        return len(await self.rows(query))


@pytest.mark.gen_test
async def test_each_finds_its_rows_by_an_index(services: Services) -> None:
    one, other, now = uuid4(), uuid4(), datetime.now(UTC)
    # What is read without an index although a scan of the table is priced out has none that serves it.
    settings = {"enable_seqscan": "off", "plan_cache_mode": "force_generic_plan"}
    async with place(services) as where, Database(where.dsn, 2, settings).open() as db:
        explaining = Explaining(db)
        asked: Any = explaining
        change: Any = SimpleNamespace(db=asked, chat_id=one, user_id=other)
        key: Any = SimpleNamespace(key_id=1, public_key=b"k", signature=b"s")
        for query in (
            accounts.find(asked, "anna"),
            users.set_password(asked, one, "hash", instead_of="other"),
            users.available(asked, "anna"),
            tombstones.buried(asked, [b"a", b"b"]),
            sessions.spent(asked, one, b"hash"),
            sessions.ended_since(asked, now),
            sessions.live(asked, one, 10, (now, other)),
            contacts.unverify(asked, one, other),
            contacts.verifications(asked, one, 10, (now, other)),
            contacts.blocks(asked, one, 10, (now, other)),
            files.usage(asked, one),
            files.entries(asked, one, 10, (now, other)),
            files.unfinished(asked, one),
            files.owned(asked, one, other, resumable=True),
            files.give_to_chat(asked, one, other, one),
            files.begin(asked, one, "upload"),
            files.complete(asked, one, b"hash"),
            files.removed(asked, ["a", "b"]),
            files.removed_at_once(asked, "a"),
            files.waiting(asked),
            push.tokens(asked, one),
            push.remove(asked, one, other),
            push.settings(asked, one),
            push.drop(asked, one, now, None),
            push.sibling(asked, one, "fcm"),
            prekeys._kyber_known(asked, one, [b"k"]),
            calls.list_ringing(asked, one),
            chats.find_masked(change),
            chats._visible_direct_chat(asked, one, b"pair"),
            invites.entries(asked, one),
            invites.revoke(change, one),
            invites.revoke_all_by(change, one),
            invites.chat_of(asked, "token"),
            sanctions.get(change, one),
            sanctions.unban(change, one),
            views.forget(change, one),
            views.clear_unread_mark(asked, one, other),
            pins.unpin(change, one, 1),
        ):
            before = len(explaining.plans)
            await query
            assert len(explaining.plans) > before, query
        await prekeys._replace_signed(asked, one, key)
        await prekeys._replace_last_resort(asked, one, key)
        for plan in explaining.plans:
            assert "Seq Scan" not in plan, plan
            assert plan.startswith("INSERT") or "Index Cond" in plan, plan
