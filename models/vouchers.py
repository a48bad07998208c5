"""Vouchers: codes that people can type, stored only as hashes, each of which buys one subscription."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import peewee
from peewee import Case, fn

from models.database import Database, Enum, Row, Table, any_of
from models.subscriptions import proof_hash

# Crockford's base 32: without I, L, O and U, which look like other symbols or form words.
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
RANDOM, CHECK = 17, 3  # symbols of 5 bits: 85 random bits, and a checksum
GROUP = 5

# The largest prime that fits into three symbols. It divides neither 32 nor any power of 32 less one up to the length of
# a code, so that one wrong symbol, and any two swapped ones, are always detected.
_MODULUS = 32749

# Look-alikes that people type, also on a Russian keyboard, and separators of groups, which are removed.
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
    """Create a new code, in groups: ``7Q2KD-0M3HX-V8TNB-4RY8F``."""
    number = secrets.randbits(5 * RANDOM)
    code = _text(number, RANDOM) + _text(number % _MODULUS, CHECK)
    return "-".join(code[place : place + GROUP] for place in range(0, RANDOM + CHECK, GROUP))


def read(typed: str) -> str | None:
    """Return the typed code in canonical form, without groups; None if it is not a code, or mistyped."""
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
    """Create ``count`` codes; they can't be shown again."""
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
    """The state of a code, "good" until one of these applies; in this order: a used code stays used."""
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
    """Return how many days of a tier a code buys now; None if it is not valid."""
    good = Voucher.select(Voucher.days).where(
        Voucher.proof_hash == proof_hash, Voucher.tier == tier, _state() == "good"
    )
    return await db.scalar(good)  # type: ignore[no-any-return]


async def listed(
    db: Database, *, proof_hash: str | None = None, batch: str | None = None, state: str | None = None
) -> list[Row]:
    """Return ``id, tier, days, batch, state, created_at, expires_at, used_at, revoked_at``, the oldest first."""
    query = Voucher.select(
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
        query = query.where(Voucher.proof_hash == proof_hash)
    if batch is not None:
        query = query.where(Voucher.batch == batch)
    if state is not None:
        query = query.where(_state() == state)
    return await db.rows(query)


async def revoke(
    db: Database,
    *,
    ids: Sequence[UUID] = (),
    hashes: Sequence[str] = (),
    batch: str | None = None,
    dry_run: bool = False,
) -> list[Row]:
    """Revoke codes. Returns ``id, state, proof_hash`` of each selected code: ``revoked``, now or before, or ``used``,
    which it stays. With ``dry_run`` nothing changes."""
    selected = any_of(Voucher.id, ids) | any_of(Voucher.proof_hash, hashes)
    if batch is not None:
        selected |= Voucher.batch == batch
    unused = Voucher.used_at.is_null()
    shown = (Voucher.id, Case(None, ((unused, "revoked"),), "used").alias("state"), Voucher.proof_hash)
    if dry_run:
        return await db.rows(Voucher.select(*shown).where(selected))
    now = Case(None, ((unused, fn.now()),))
    return await db.rows(
        Voucher.update(revoked_at=fn.coalesce(Voucher.revoked_at, now)).where(selected).returning(*shown)
    )
