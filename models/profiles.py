"""Profiles: what users may see of others, and of themselves."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from uuid import UUID

from models.database import Database, Row
from models.presence import sees_presence

_COLUMNS = ", ".join(
    f"users.{column}"
    for column in (
        "id",
        "public_id",
        "display_name",
        "fingerprint",
        "signing_public_key",
        "avatar_url",
        "bio",
        "language",
        "created_at",
    )
)


def _profiles(kind: str, condition: str) -> str:
    return f"""
        SELECT asked.place, {_COLUMNS}, visible AND is_online AS is_online,
               CASE WHEN visible THEN last_seen END AS last_seen
        FROM unnest($1::{kind}[], $2::uuid[], $3::integer[]) AS asked (name, viewer, place) JOIN users ON {condition},
            LATERAL (SELECT {sees_presence("asked.viewer")} AS visible) AS seen"""


_BY_NAME = _profiles("text", "lower(users.public_id) = lower(asked.name)")
_BY_ID = _profiles("uuid", "users.id = asked.name")


async def profiles(db: Database, requests: Sequence[tuple[UUID | str, UUID]]) -> list[Row | None]:
    """Return for each (user id or public id, viewer) the profile as the viewer may see it: presence is false and null
    if hidden."""
    results: list[Row | None] = [None] * len(requests)
    names = [(user, viewer, place) for place, (user, viewer) in enumerate(requests) if isinstance(user, str)]
    ids = [(user, viewer, place) for place, (user, viewer) in enumerate(requests) if isinstance(user, UUID)]
    for statement, wanted in ((_BY_NAME, names), (_BY_ID, ids)):
        if wanted:
            for row in await db.fetch(statement, *(list(column) for column in zip(*wanted, strict=True))):
                results[row["place"]] = row
    return results


async def me(db: Database, user_id: UUID) -> Row | None:
    """Return a user's own profile, with the identity key."""
    return await db.row(
        f"SELECT {_COLUMNS}, settings, is_online, last_seen, identity_key, sealed_chat_id FROM users WHERE id = $1",
        user_id,
    )


# A range of an index; LIKE with a parameter uses an index only in a plan made for that q. An id that begins with q is q
# or sorts after it, and before q followed by the character after `z`, the last one that an id may contain.
_AFTER_ALL = "{"
# How often one id can contain the same part after its first letter: 32 letters contain 30 pairs there.
_REPEATS = 30


@functools.cache
def _find(limit: int) -> str:
    """Return the statement for at most ``limit`` rows.

    It searches inside ids only if fewer than ``limit`` ids begin with q. Ids that do, or that contain q several times,
    must not displace others: even if all were so, ``limit * _REPEATS`` rotations contain ``limit`` of them. It reads at
    most that many, however many match; and since ids seldom repeat a part, twice ``limit`` is nearly always enough.

    Limits are numbers, q and the viewer come as ``(SELECT $1)``, so that PostgreSQL knows only the former when it
    plans: it makes one plan for all and keeps it, instead of spending more on planning than on execution.
    """
    q, after = "(SELECT $1::text)", "(SELECT $2::text)"
    return f"""
        WITH beginning AS MATERIALIZED (
            SELECT lower(public_id) AS name FROM users
            WHERE lower(public_id) >= {q} AND lower(public_id) < {after} ORDER BY 1 LIMIT {limit}
        ), met AS MATERIALIZED (  -- read only as far as needed
            SELECT split_part(rotation, '/', 2) || split_part(rotation, '/', 1) AS name FROM user_rotations
            WHERE rotation >= {q} AND rotation < {after} AND (SELECT count(*) < {limit} FROM beginning)
            ORDER BY rotation LIMIT {limit * _REPEATS}
        ), enough AS (
            SELECT CASE WHEN count(DISTINCT name) + (SELECT count(*) FROM beginning) < {limit}
                   THEN {limit * _REPEATS} ELSE {limit * 2} END AS rows
            FROM (SELECT name FROM met LIMIT {limit * 2}) AS near WHERE NOT starts_with(name, $1)
        ), found AS (
            SELECT 1 AS place, name FROM beginning
            UNION ALL
            SELECT DISTINCT 2, name FROM (SELECT name FROM met LIMIT (SELECT rows FROM enough)) AS far
            WHERE NOT starts_with(name, $1)
            ORDER BY place, name LIMIT {limit}
        )
        SELECT id AS user_id, public_id, display_name, avatar_url, fingerprint,
               is_online AND {sees_presence("(SELECT $3::uuid)")} AS is_online
        FROM found, LATERAL (  -- by its index, one at a time, however small the table was when it was planned
            SELECT * FROM users WHERE lower(public_id) = name OFFSET 0
        ) AS users ORDER BY place, name"""


async def find(db: Database, q: str, viewer: UUID, limit: int) -> list[Row]:
    """Return accounts whose public id contains ``q`` (2 letters or more): an exact match first, then ids that begin
    with it, then the rest, each in alphabetical order. If the rest is too large, it is an arbitrary part of it."""
    q = q.lower()
    return await db.fetch(_find(limit), q, q + _AFTER_ALL, viewer)
