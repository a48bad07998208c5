"""Prekeys: signed, one-time and Kyber keys that others fetch to open a Signal session with someone offline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

import asyncpg
import peewee

from models.database import Database, Table
from models.users import User


class SignedPrekey(Table):
    id = peewee.UUIDField(primary_key=True)
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    key_id = peewee.IntegerField()
    public_key = peewee.BlobField()
    signature = peewee.BlobField()
    created_at = peewee.DateTimeField()
    superseded_at = peewee.DateTimeField(null=True)

    class Meta:
        table_name = "signed_prekeys"


class OneTimePrekey(Table):
    id = peewee.UUIDField(primary_key=True)
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    key_id = peewee.IntegerField()
    public_key = peewee.BlobField()
    used = peewee.BooleanField(default=False)
    used_at = peewee.DateTimeField(null=True)
    created_at = peewee.DateTimeField()

    class Meta:
        table_name = "one_time_prekeys"


class KyberPrekey(Table):
    id = peewee.UUIDField(primary_key=True)
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    key_id = peewee.IntegerField()
    public_key = peewee.BlobField()
    signature = peewee.BlobField()
    last_resort = peewee.BooleanField(default=False)
    used = peewee.BooleanField(default=False)
    used_at = peewee.DateTimeField(null=True)
    superseded_at = peewee.DateTimeField(null=True)
    created_at = peewee.DateTimeField()

    class Meta:
        table_name = "kyber_prekeys"


class Unsigned(NamedTuple):
    key_id: int
    public_key: bytes


class Signed(NamedTuple):
    key_id: int
    public_key: bytes
    signature: bytes


class Reused(Exception):
    """A key id that was sent before; ``kind`` is the table's noun."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


async def add(
    db: Database,
    user_id: UUID,
    *,
    signed: Signed | None = None,
    one_time: Sequence[Unsigned] = (),
    kyber: Sequence[Signed] = (),
    last_resort: Signed | None = None,
) -> None:
    """Store keys, in the caller's transaction or one of its own. Raises Reused."""
    async with db.transaction():
        # Two uploads at once: the second waits, so that one of two new signed prekeys is superseded by the other.
        await db.execute("SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE", user_id)
        if signed:
            await db.execute(
                "UPDATE signed_prekeys SET superseded_at = now() WHERE user_id = $1 AND superseded_at IS NULL", user_id
            )
            await _insert(
                db,
                "signed_prekey",
                "INSERT INTO signed_prekeys (user_id, key_id, public_key, signature) VALUES ($1, $2, $3, $4)",
                [(user_id, *signed)],
            )
        await _insert(
            db,
            "one_time_prekeys",
            "INSERT INTO one_time_prekeys (user_id, key_id, public_key) VALUES ($1, $2, $3)",
            [(user_id, *key) for key in one_time],
        )
        await _insert(
            db,
            "kyber_prekeys",
            "INSERT INTO kyber_prekeys (user_id, key_id, public_key, signature) VALUES ($1, $2, $3, $4)",
            [(user_id, *key) for key in kyber],
        )
        if last_resort:
            await db.execute(
                "UPDATE kyber_prekeys SET superseded_at = now()"
                " WHERE user_id = $1 AND last_resort AND superseded_at IS NULL",
                user_id,
            )
            await _insert(
                db,
                "last_resort_kyber_prekey",
                "INSERT INTO kyber_prekeys (user_id, key_id, public_key, signature, last_resort)"
                " VALUES ($1, $2, $3, $4, true)",
                [(user_id, *last_resort)],
            )


async def _insert(db: Database, kind: str, sql: str, rows: Iterable[Sequence[object]]) -> None:
    try:
        await db.many(sql, list(rows))
    except asyncpg.UniqueViolationError:
        raise Reused(kind) from None


async def signed_prekey(db: Database, user_id: UUID) -> asyncpg.Record | None:
    """The current one: ``id, key_id, public_key, signature, created_at``."""
    return await db.row(
        "SELECT id, key_id, public_key, signature, created_at FROM signed_prekeys"
        " WHERE user_id = $1 AND superseded_at IS NULL",
        user_id,
    )


# A standby may take over between two looks of models/epochs.py, and not know what was handed out last: until the
# database is settled it hands out none. Costs 45 µs.
_HERE = "(SELECT place = database_place() FROM sync_epoch)"


async def claim(db: Database, user_id: UUID) -> asyncpg.Record | None:
    """Hand out one one-time prekey, once, ever: ``id, key_id, public_key``; None when none is left.

    SKIP LOCKED lets concurrent fetches take different keys; without it they get duplicates, or wait and miss some.
    """
    return await db.row(
        f"""UPDATE one_time_prekeys SET used = true, used_at = now()
           WHERE id = (SELECT id FROM one_time_prekeys WHERE user_id = $1 AND NOT used AND {_HERE}
                       ORDER BY key_id LIMIT 1 FOR UPDATE SKIP LOCKED)
           RETURNING id, key_id, public_key""",
        user_id,
    )


async def claim_kyber(db: Database, user_id: UUID) -> asyncpg.Record | None:
    """Hand out one Kyber prekey, once; when none is left the last-resort one, which stays."""
    return await db.row(
        f"""UPDATE kyber_prekeys SET used = true, used_at = now()
           WHERE id = (SELECT id FROM kyber_prekeys WHERE user_id = $1 AND NOT used AND NOT last_resort AND {_HERE}
                       ORDER BY key_id LIMIT 1 FOR UPDATE SKIP LOCKED)
           RETURNING id, key_id, public_key, signature""",
        user_id,
    ) or await last_resort(db, user_id)


async def last_resort(db: Database, user_id: UUID) -> asyncpg.Record | None:
    return await db.row(
        "SELECT id, key_id, public_key, signature FROM kyber_prekeys"
        " WHERE user_id = $1 AND last_resort AND superseded_at IS NULL",
        user_id,
    )


class Remaining(NamedTuple):
    one_time: int
    kyber: int


async def remaining(db: Database, user_id: UUID) -> Remaining:
    """How many keys can still be handed out once."""
    row = await db.row(
        """SELECT (SELECT count(*) FROM one_time_prekeys WHERE user_id = $1 AND NOT used),
                  (SELECT count(*) FROM kyber_prekeys WHERE user_id = $1 AND NOT used AND NOT last_resort)""",
        user_id,
    )
    assert row is not None
    return Remaining(*row)


LOW = 10  # fewer one-time prekeys than this and the owner is notified (contract section 3)


async def left(db: Database, user_id: UUID, at_most: int) -> int:
    """How many one-time prekeys are left, counted no further than ``at_most``."""
    return await db.value(  # type: ignore[no-any-return]
        "SELECT count(*) FROM (SELECT 1 FROM one_time_prekeys WHERE user_id = $1 AND NOT used LIMIT $2) AS unused",
        user_id,
        at_most,
    )


async def used_up(db: Database, user_id: UUID) -> bool:
    """Whether a user had one-time prekeys, and none is left. Who never sent any wants none."""
    return await db.value(  # type: ignore[no-any-return]
        """SELECT NOT EXISTS (SELECT 1 FROM one_time_prekeys WHERE user_id = $1 AND NOT used)
              AND (EXISTS (SELECT 1 FROM spent_prekeys WHERE user_id = $1 AND kind = 'one_time')
                   OR EXISTS (SELECT 1 FROM one_time_prekeys WHERE user_id = $1))""",
        user_id,
    )
