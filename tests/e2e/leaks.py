"""The search for what a server that carries ciphertext only must not hold: in its database, its cache and its log."""

import base64
from collections.abc import Iterable, Iterator
from typing import Any

import asyncpg
from redis.asyncio import Redis

from tests.phones.phone import Phone


async def database_text(dsn: str) -> str:
    """Every row of every table, as PostgreSQL writes it: bytes in hex, JSON as JSON."""
    connection = await asyncpg.connect(dsn)
    try:
        tables = await connection.fetch(
            """
            SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables
            WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')
            """
        )
        assert tables, "a database without a table proves nothing"
        rows = [row for (name,) in tables for (row,) in await connection.fetch(f"SELECT t::text FROM {name} AS t")]
        return "\n".join(rows)
    finally:
        await connection.close()


async def cache_text(url: str) -> str:
    """Every key of Redis with what it holds, as text and in hex."""
    async with Redis.from_url(url) as redis:
        found: list[bytes] = []
        key: Any
        async for key in redis.scan_iter():
            found += [key, *await _held(redis, key)]
    return "\n".join(form for value in found for form in (value.decode("latin-1"), value.hex()))


async def _held(redis: Any, key: bytes) -> list[bytes]:
    kind = (await redis.type(key)).decode()
    if kind == "string":
        value = await redis.get(key)
        return [value] if value is not None else []
    if kind == "hash":
        return [part for pair in (await redis.hgetall(key)).items() for part in pair]
    if kind == "list":
        return list(await redis.lrange(key, 0, -1))
    if kind == "set":
        return list(await redis.smembers(key))
    if kind == "zset":
        return list(await redis.zrange(key, 0, -1))
    if kind == "stream":
        entries = await redis.xrange(key)
        return [part for _, fields in entries for pair in fields.items() for part in pair]
    assert kind == "none", f"a kind of key that this search can't read: {kind}"  # it expired meanwhile
    return []


def assert_no_leak(phones: Iterable[Phone], **places: str) -> None:
    """No place (`database`, `cache`, `log`) has a plaintext or secret of the phones.

    Nor has it what should not outlive its delivery: a payload of a call is in none of them when the call is over; a
    message's is in the database only.
    """
    assert '"event":' in places["log"], "an empty log proves nothing"
    for phone in phones:
        assert len(phone.said) > 5, "a phone that said nothing proves nothing"
        for place, text in places.items():
            leaked = [said for said in phone.said if any(form in text for form in _forms(said.encode()))]
            assert not leaked, f"the {place} holds what {phone.public_id} said: {leaked}"
            gone = phone.signalled if place == "database" else [*phone.signalled, *phone.posted]
            kept = [payload for payload in gone if holds(text, payload)]
            assert not kept, f"the {place} holds {len(kept)} payloads of {phone.public_id}"


def holds(text: str, payload: str) -> bool:
    """True if a text contains a payload, as base64 or as its bytes."""
    return any(form in text for form in (payload, base64.b64decode(payload).hex()))


def _forms(raw: bytes) -> Iterator[str]:
    """A text as it is, in hex, and as base64 shows it at each of the three places where it may begin."""
    yield raw.decode()
    yield raw.hex()
    for start in range(3):
        whole = raw[start:]
        yield base64.b64encode(whole[: len(whole) // 3 * 3]).decode()
