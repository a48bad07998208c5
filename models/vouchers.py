"""Vouchers: codes that people can type, of which only a hash is kept, and that buy one subscription each."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import peewee
from peewee import Case, fn

from models.database import Database, Enum, Row, Table, any_of
from models.subscriptions import proof_hash

# Crockford's base 32: no I, L, O and U, which look like others or make words.
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
RANDOM, CHECK = 17, 3  # symbols of 5 bits: 85 random bits, and a checksum
GROUP = 5

# The largest prime that three symbols hold. 32 is not divisible by it, nor is any power of 32 less one up to the length
# of a code, so that one wrong symbol, and any two that changed places, are always noticed.
_MODULUS = 32749

# What people type, or a keyboard that is set to Russian makes of it. Whatever separates groups goes.
_READ = str.maketrans(
    {"O": "0", "I": "1", "L": "1", **dict(zip("АВЕКМНОРСТУХ", "ABEKMH0PCTYX", strict=True))}
    | dict.fromkeys("-\u2010\u2011\u2012\u2013\u2014_.", None)
)


class Voucher(Table):
    id = peewee.UUIDField(primary_key=True)
    proof_hash = peewee.TextField(unique=True)
    tier = Enum("subscription_tier")
    days = peewee.IntegerField()
    batch = peewee.TextField(null=True)
    created_at = peewee.DateTimeField()
    expires_at = peewee.DateTimeField(null=True)
    used_at = peewee.DateTimeField(null=True)
    revoked_at = peewee.DateTimeField(null=True)

    class Meta:
        table_name = "vouchers"


def _text(number: int, symbols: int) -> str:
    return "".join(ALPHABET[number >> 5 * place & 31] for place in reversed(range(symbols)))


def make() -> str:
    """A new code, in groups: ``7Q2KD-0M3HX-V8TNB-4RY8F``."""
    number = secrets.randbits(5 * RANDOM)
    code = _text(number, RANDOM) + _text(number % _MODULUS, CHECK)
    return "-".join(code[place : place + GROUP] for place in range(0, RANDOM + CHECK, GROUP))


def read(typed: str) -> str | None:
    """The code that somebody typed, without its groups; None for what is no code, or has a slip in it."""
    code = "".join(typed.upper().translate(_READ).split())
    if len(code) != RANDOM + CHECK or set(code) - set(ALPHABET):
        return None
    number, check = code[:RANDOM], code[RANDOM:]
    return code if _text(_number(number) % _MODULUS, CHECK) == check else None


def _number(code: str) -> int:
    value = 0
    for symbol in code:
        value = value << 5 | ALPHABET.index(symbol)
    return value


async def create(
    db: Database, tier: str, days: int, count: int, *, expires_at: datetime | None = None, batch: str | None = None
) -> list[str]:
    """Make so many codes; they can't be shown again."""
    codes = [make() for _ in range(count)]
    hashes = [proof_hash("voucher", str(read(code))) for code in codes]
    await db.execute(
        """INSERT INTO vouchers (proof_hash, tier, days, expires_at, batch)
           SELECT unnest($1::text[]), $2::subscription_tier, $3, $4, $5""",
        hashes,
        tier,
        days,
        expires_at,
        batch,
    )
    return codes


def _state() -> Case:
    """A code is good until one of these is so; in this order, since one that was used is used whatever came after."""
    return Case(
        None,
        (
            (Voucher.used_at.is_null(False), "used"),
            (Voucher.revoked_at.is_null(False), "revoked"),
            (Voucher.expires_at <= fn.now(), "expired"),
        ),
        "good",
    )


async def days(db: Database, proof_hash: str, tier: str) -> int | None:
    """How many days of a tier a code is good for just now; None when it isn't."""
    good = Voucher.select(Voucher.days).where(
        Voucher.proof_hash == proof_hash, Voucher.tier == tier, _state() == "good"
    )
    return await db.scalar(good)  # type: ignore[no-any-return]


async def listed(
    db: Database, *, proof_hash: str | None = None, batch: str | None = None, state: str | None = None
) -> list[Row]:
    """``id, tier, days, batch, state, created_at, expires_at, used_at, revoked_at``, the oldest first."""
    found = Voucher.select(
        Voucher.id,
        Voucher.tier.label,
        Voucher.days,
        Voucher.batch,
        _state().alias("state"),
        Voucher.created_at,
        Voucher.expires_at,
        Voucher.used_at,
        Voucher.revoked_at,
    ).order_by(Voucher.created_at, Voucher.id)
    if proof_hash is not None:
        found = found.where(Voucher.proof_hash == proof_hash)
    if batch is not None:
        found = found.where(Voucher.batch == batch)
    if state is not None:
        found = found.where(_state() == state)
    return await db.rows(found)


async def revoke(
    db: Database,
    *,
    ids: Sequence[UUID] = (),
    hashes: Sequence[str] = (),
    batch: str | None = None,
    dry_run: bool = False,
) -> list[Row]:
    """Keep codes from being used; ``id, state, proof_hash`` of each that was named: ``revoked``, now or before, or
    ``used``, which it stays. With ``dry_run`` nothing is changed."""
    named = any_of(Voucher.id, ids) | any_of(Voucher.proof_hash, hashes)
    if batch is not None:
        named |= Voucher.batch == batch
    unused = Voucher.used_at.is_null()
    shown = (Voucher.id, Case(None, ((unused, "revoked"),), "used").alias("state"), Voucher.proof_hash)
    if dry_run:
        return await db.rows(Voucher.select(*shown).where(named))
    now = Case(None, ((unused, fn.now()),))
    return await db.rows(Voucher.update(revoked_at=fn.coalesce(Voucher.revoked_at, now)).where(named).returning(*shown))
