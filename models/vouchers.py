"""Vouchers: codes that people can type, of which only a hash is kept, and that buy one subscription each."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import peewee

from models.database import Database, Enum, Row, Table
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


# Good until one of these is so; in this order, since a code that was used is used whatever came after.
_STATE = """CASE WHEN used_at IS NOT NULL THEN 'used' WHEN revoked_at IS NOT NULL THEN 'revoked'
                 WHEN expires_at <= now() THEN 'expired' ELSE 'good' END"""


async def days(db: Database, proof_hash: str, tier: str) -> int | None:
    """How many days of a tier a code is good for just now; None when it isn't."""
    return await db.value(  # type: ignore[no-any-return]
        f"SELECT days FROM vouchers WHERE proof_hash = $1 AND tier = $2::subscription_tier AND {_STATE} = 'good'",
        proof_hash,
        tier,
    )


async def listed(
    db: Database, *, proof_hash: str | None = None, batch: str | None = None, state: str | None = None
) -> list[Row]:
    """``id, tier, days, batch, state, created_at, expires_at, used_at, revoked_at``, the oldest first."""
    return await db.fetch(
        f"""SELECT * FROM (
                SELECT id, tier::text, days, batch, {_STATE} AS state, created_at, expires_at, used_at, revoked_at
                FROM vouchers
                WHERE ($1::text IS NULL OR proof_hash = $1) AND ($2::text IS NULL OR batch = $2)
            ) AS found WHERE $3::text IS NULL OR state = $3 ORDER BY created_at, id""",
        proof_hash,
        batch,
        state,
    )


_NAMED = "id = ANY ($1::uuid[]) OR proof_hash = ANY ($2::text[]) OR batch = $3::text"
_REVOKED = "id, CASE WHEN used_at IS NULL THEN 'revoked' ELSE 'used' END AS state, proof_hash"


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
    statement = f"""UPDATE vouchers SET revoked_at = coalesce(revoked_at, CASE WHEN used_at IS NULL THEN now() END)
                    WHERE {_NAMED} RETURNING {_REVOKED}"""
    if dry_run:
        statement = f"SELECT {_REVOKED} FROM vouchers WHERE {_NAMED}"
    return await db.fetch(statement, list(ids), list(hashes), batch)
