"""Prekeys: signed, one-time and Kyber keys that others fetch to open a Signal session with an offline user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar
from uuid import UUID

import asyncpg
import peewee
from peewee import fn

from models import tombstones
from models.database import Database, Table, any_of
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


class SupersededPrekey(Table):
    """A signed or last-resort prekey that was replaced, and whose row was removed by the cleanup."""

    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    key_hash = peewee.BlobField()

    class Meta:
        table_name = "superseded_prekeys"
        primary_key = peewee.CompositeKey("user", "key_hash")


class Unsigned(Protocol):
    @property
    def key_id(self) -> int: ...
    @property
    def public_key(self) -> bytes: ...


class Signed(Unsigned, Protocol):
    @property
    def signature(self) -> bytes: ...


class Upload(Protocol):
    """The keys that a client sends, as it names them."""

    @property
    def signed_prekey(self) -> Signed | None: ...
    @property
    def one_time_prekeys(self) -> Sequence[Unsigned]: ...
    @property
    def kyber_prekeys(self) -> Sequence[Signed]: ...
    @property
    def last_resort_kyber_prekey(self) -> Signed | None: ...


K = TypeVar("K", bound=Unsigned)


class Reused(Exception):
    """A key id was sent before with another key, or a key was sent before; ``kind`` is the field's name."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class TooMany(Exception):
    """There would be too many unused keys of a kind; ``left`` is their number without the new ones."""

    def __init__(self, kind: str, left: int) -> None:
        super().__init__(kind)
        self.kind, self.left = kind, left


async def add(db: Database, user_id: UUID, upload: Upload, *, at_most: int) -> None:
    """Store keys, in the caller's transaction or its own. Raises Reused, TooMany.

    A key that is stored under the same id stays as it is, even if it was handed out in the meantime: so a client can
    repeat an upload whose response was lost.
    """
    async with db.transaction():
        # Two uploads at once: the second waits, so that one of two new signed prekeys is superseded by the other.
        await db.execute("SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE", user_id)
        if upload.signed_prekey:
            await _replace_signed(db, user_id, upload.signed_prekey)
        if upload.one_time_prekeys:
            await _add_one_time(db, user_id, upload.one_time_prekeys, at_most)
        if upload.kyber_prekeys:
            await _add_kyber(db, user_id, upload.kyber_prekeys, at_most)
        if upload.last_resort_kyber_prekey:
            await _replace_last_resort(db, user_id, upload.last_resort_kyber_prekey)


# Between a SELECT and an INSERT here keys may only disappear: the user's row is locked against other uploads. If the
# cleanup removes a key in between, its id is in ``spent_prekeys``, and the trigger on the table rejects it.


async def _replace_signed(db: Database, user_id: UUID, key: Signed) -> None:
    current = (SignedPrekey.user == user_id, SignedPrekey.superseded_at.is_null())
    known = await db.rows(
        SignedPrekey.select(
            SignedPrekey.key_id, SignedPrekey.public_key, SignedPrekey.superseded_at.is_null().alias("current")
        ).where(
            SignedPrekey.user == user_id,
            (SignedPrekey.key_id == key.key_id) | (SignedPrekey.public_key == key.public_key),
        )
    )
    if _is_current(known, key):
        return
    if known or await _superseded(db, user_id, [key.public_key]):
        raise Reused("signed_prekey")
    await db.do(SignedPrekey.update(superseded_at=fn.now()).where(*current))
    with _reused("signed_prekey"):
        await db.do(SignedPrekey.insert(user=user_id, **_fields(key)))


async def _add_one_time(db: Database, user_id: UUID, keys: Sequence[Unsigned], at_most: int) -> None:
    known = await db.rows(
        OneTimePrekey.select(OneTimePrekey.key_id, OneTimePrekey.public_key).where(
            OneTimePrekey.user == user_id, any_of(OneTimePrekey.key_id, [key.key_id for key in keys])
        )
    )
    fresh = _fresh(keys, known, "one_time_prekeys")
    if not fresh:
        return
    left = (await remaining(db, user_id)).one_time
    if left + len(fresh) > at_most:
        raise TooMany("one_time_prekeys", left)
    with _reused("one_time_prekeys"):
        await db.many(
            "INSERT INTO one_time_prekeys (user_id, key_id, public_key) VALUES ($1, $2, $3)",
            [(user_id, key.key_id, key.public_key) for key in fresh],
        )


async def _add_kyber(db: Database, user_id: UUID, keys: Sequence[Signed], at_most: int) -> None:
    known = await db.rows(
        KyberPrekey.select(KyberPrekey.key_id, KyberPrekey.public_key).where(
            KyberPrekey.user == user_id,
            ~KyberPrekey.last_resort,
            any_of(KyberPrekey.key_id, [key.key_id for key in keys]),
        )
    )
    fresh = _fresh(keys, known, "kyber_prekeys")
    if not fresh:
        return
    public_keys = [key.public_key for key in fresh]
    if len(set(public_keys)) < len(public_keys) or await _kyber_known(db, user_id, public_keys):
        raise Reused("kyber_prekeys")
    left = (await remaining(db, user_id)).kyber
    if left + len(fresh) > at_most:
        raise TooMany("kyber_prekeys", left)
    with _reused("kyber_prekeys"):
        await db.many(
            "INSERT INTO kyber_prekeys (user_id, key_id, public_key, signature) VALUES ($1, $2, $3, $4)",
            [(user_id, *_fields(key).values()) for key in fresh],
        )


async def _replace_last_resort(db: Database, user_id: UUID, key: Signed) -> None:
    current = (KyberPrekey.user == user_id, KyberPrekey.last_resort, KyberPrekey.superseded_at.is_null())
    known = await db.rows(
        KyberPrekey.select(
            KyberPrekey.key_id, KyberPrekey.public_key, KyberPrekey.superseded_at.is_null().alias("current")
        ).where(KyberPrekey.user == user_id, KyberPrekey.last_resort, KyberPrekey.key_id == key.key_id)
    )
    if _is_current(known, key):
        return
    if known or await _kyber_known(db, user_id, [key.public_key]):
        raise Reused("last_resort_kyber_prekey")
    await db.do(KyberPrekey.update(superseded_at=fn.now()).where(*current))
    with _reused("last_resort_kyber_prekey"):
        await db.do(KyberPrekey.insert(user=user_id, last_resort=True, **_fields(key)))


def _fields(key: Signed) -> dict[str, int | bytes]:
    return {"key_id": key.key_id, "public_key": key.public_key, "signature": key.signature}


def _is_current(known: Sequence[asyncpg.Record], key: Signed) -> bool:
    return any(
        row["current"] and row["key_id"] == key.key_id and bytes(row["public_key"]) == key.public_key for row in known
    )


def _fresh(keys: Sequence[K], known: Sequence[asyncpg.Record], kind: str) -> list[K]:
    """Return the keys that are not stored yet. Raises Reused for an id of another key."""
    stored = {row["key_id"]: bytes(row["public_key"]) for row in known}
    if any(stored.get(key.key_id, key.public_key) != key.public_key for key in keys):
        raise Reused(kind)
    return [key for key in keys if key.key_id not in stored]


async def _superseded(db: Database, user_id: UUID, public_keys: Sequence[bytes]) -> bool:
    """True if one of the keys was replaced before, and its row removed by the cleanup."""
    hashes = [tombstones.of_prekey(key) for key in public_keys]
    return await db.exists(
        SupersededPrekey.select().where(SupersededPrekey.user == user_id, any_of(SupersededPrekey.key_hash, hashes))
    )


async def _kyber_known(db: Database, user_id: UUID, public_keys: Sequence[bytes]) -> bool:
    """True if the user sent one of the keys before, as a one-time or as a last-resort key.

    The signature covers only the key: a thief of the access token alone could store an old key again.
    """
    there = KyberPrekey.select().where(KyberPrekey.user == user_id, any_of(KyberPrekey.public_key, public_keys))
    return await db.exists(there) or await _superseded(db, user_id, public_keys)


@contextlib.contextmanager
def _reused(kind: str) -> Iterator[None]:
    """Raise Reused if a key that is inserted in the block exists already."""
    try:
        yield
    except asyncpg.UniqueViolationError:
        raise Reused(kind) from None


async def signed_prekey(db: Database, user_id: UUID) -> asyncpg.Record | None:
    """Return the current one: ``id, key_id, public_key, signature, created_at``."""
    return await db.row(
        "SELECT id, key_id, public_key, signature, created_at FROM signed_prekeys"
        " WHERE user_id = $1 AND superseded_at IS NULL",
        user_id,
    )


# A standby may take over between two checks of models/postgres/epochs.py, and lack the latest claims: until the new
# epoch has begun no prekey is handed out. Costs 45 µs.
_HERE = "(SELECT place = database_place() FROM sync_epoch)"


async def claim(db: Database, user_id: UUID) -> asyncpg.Record | None:
    """Hand out one one-time prekey, once, ever: ``id, key_id, public_key``; None if none is left.

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
    """Hand out one Kyber prekey, once; if none is left, the last-resort one, which stays."""
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
    """Count the keys that can still be handed out."""
    row = await db.row(
        """SELECT (SELECT count(*) FROM one_time_prekeys WHERE user_id = $1 AND NOT used),
                  (SELECT count(*) FROM kyber_prekeys WHERE user_id = $1 AND NOT used AND NOT last_resort)""",
        user_id,
    )
    assert row is not None
    return Remaining(*row)


LOW = 10  # with fewer one-time prekeys than this the owner is notified (contract section 3)


async def left(db: Database, user_id: UUID, at_most: int) -> int:
    """Count the one-time prekeys that are left, up to ``at_most``."""
    return await db.value(  # type: ignore[no-any-return]
        "SELECT count(*) FROM (SELECT 1 FROM one_time_prekeys WHERE user_id = $1 AND NOT used LIMIT $2) AS unused",
        user_id,
        at_most,
    )


async def used_up(db: Database, user_id: UUID) -> bool:
    """True if a user had one-time prekeys, and none is left. False if the user never uploaded any."""
    return await db.value(  # type: ignore[no-any-return]
        """SELECT NOT EXISTS (SELECT 1 FROM one_time_prekeys WHERE user_id = $1 AND NOT used)
              AND (EXISTS (SELECT 1 FROM spent_prekeys WHERE user_id = $1 AND kind = 'one_time')
                   OR EXISTS (SELECT 1 FROM one_time_prekeys WHERE user_id = $1))""",
        user_id,
    )
