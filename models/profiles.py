"""Profiles: what one user may see of others, and of themselves."""

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


async def profiles(db: Database, asked: Sequence[tuple[UUID | str, UUID]]) -> list[Row | None]:
    """For each (user id or public id, viewer) that user as the viewer may see them: presence is false and null where
    hidden."""
    found: list[Row | None] = [None] * len(asked)
    names = [(user, viewer, place) for place, (user, viewer) in enumerate(asked) if isinstance(user, str)]
    ids = [(user, viewer, place) for place, (user, viewer) in enumerate(asked) if isinstance(user, UUID)]
    for statement, wanted in ((_BY_NAME, names), (_BY_ID, ids)):
        if wanted:
            for row in await db.fetch(statement, *(list(column) for column in zip(*wanted, strict=True))):
                found[row["place"]] = row
    return found


async def me(db: Database, user_id: UUID) -> Row | None:
    """A user as they see themselves, with the identity key."""
    return await db.row(
        f"SELECT {_COLUMNS}, settings, is_online, last_seen, identity_key, sealed_chat_id FROM users WHERE id = $1",
        user_id,
    )


# A range of an index, where LIKE with a parameter could use one only in a plan made for that very q: an id that begins
# with q is q or comes after it, and before q with the sign that follows `z`, the last one an id may bear.
_AFTER_ALL = "{"
# How often one id can hold the same part behind its first letter: 32 letters hold 30 pairs there.
_REPEATS = 30


@functools.cache
def _find(limit: int) -> str:
    """The statement for at most ``limit`` rows.

    Parts of ids are only looked for when fewer than ``limit`` ids begin with q. An id that does, or that holds q
    several times, must then hide no other: were all that are met so, ``limit`` of them would still be found among
    ``limit * _REPEATS`` rotations. So much is read at most, however many match; and since ids seldom repeat
    themselves, twice ``limit`` nearly always does.

    Limits are numbers, q and the viewer come by ``(SELECT $1)``, so that PostgreSQL knows the former and not the latter
    when it plans: it makes one plan for all and keeps it, instead of spending more on plans than on their execution.
    """
    q, after = "(SELECT $1::text)", "(SELECT $2::text)"
    return f"""
        WITH beginning AS MATERIALIZED (
            SELECT lower(public_id) AS name FROM users
            WHERE lower(public_id) >= {q} AND lower(public_id) < {after} ORDER BY 1 LIMIT {limit}
        ), met AS MATERIALIZED (  -- read only as far as it is asked for
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
        FROM found, LATERAL (  -- by its index, one at a time, however small the table was when the plan was made
            SELECT * FROM users WHERE lower(public_id) = name OFFSET 0
        ) AS users ORDER BY place, name"""


async def find(db: Database, q: str, viewer: UUID, limit: int) -> list[Row]:
    """Accounts whose public id contains ``q`` (2 letters or more): the same one first, then those that begin with it,
    then the rest, each by the alphabet. Of a rest that is too large some are shown, not the first by the alphabet."""
    q = q.lower()
    return await db.fetch(_find(limit), q, q + _AFTER_ALL, viewer)
