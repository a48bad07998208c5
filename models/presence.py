"""Presence: which instances hold sockets of which users, so that ``users.is_online`` and ``users.last_seen`` are true,
and who may see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

import peewee
from peewee import SQL

from models.database import Database, Row, Table
from models.sweeps import UNWATCHED, Due, Sweep, Sweeper, Watch
from models.users import User

STALE_SECONDS = 40  # an instance silent for this long is dead; with a sweep every 10 s that is within the 60 s promised

BATCH = 500  # connections of dead instances that one statement removes


class Instance(Table):
    id = peewee.UUIDField(primary_key=True)
    beat_at = peewee.DateTimeField()

    class Meta:
        table_name = "instances"


class Connection(Table):
    user = peewee.ForeignKeyField(User, on_delete="CASCADE")
    instance = peewee.ForeignKeyField(Instance, on_delete="CASCADE")

    class Meta:
        table_name = "connections"
        primary_key = peewee.CompositeKey("user", "instance")


def is_contact(viewer: str) -> str:
    """SQL: true if ``viewer`` is a contact of the user in the present row of ``users``: that user has verified the
    viewer, written to them in a chat of two, called them, or answered their call. Actions of the viewer don't count.

    ``OFFSET 0`` keeps PostgreSQL from reading all users who have blocked or verified the viewer, maybe 100,000, to find
    the few rows among them (30 ms instead of 0.5).
    """
    return f"""(
        EXISTS (SELECT 1 FROM user_verifications
                WHERE verifier_id = users.id AND verified_user_id = {viewer} OFFSET 0)
        OR EXISTS (SELECT 1 FROM user_contacts WHERE user_id = users.id AND contact_id = {viewer} OFFSET 0))"""


def sees_presence(viewer: str) -> str:
    """SQL: true if ``viewer`` (a parameter such as ``$2``) may see the presence of the user in the present row of
    ``users``. This is the only place that decides it.

    False if either has blocked the other; else as that user's ``settings.privacy.last_seen`` says: ``everyone`` (also
    if unset), ``contacts`` (see ``is_contact``) or ``nobody``.
    """
    return f"""
        (users.id = {viewer} OR (
            NOT EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = users.id AND blocked_id = {viewer} OFFSET 0)
            AND NOT EXISTS (SELECT 1 FROM user_blocks WHERE blocker_id = {viewer} AND blocked_id = users.id OFFSET 0)
            AND CASE users.settings #>> '{{privacy,last_seen}}'
                WHEN 'nobody' THEN false
                WHEN 'contacts' THEN {is_contact(viewer)}
                ELSE true END))"""


async def list_visible(db: Database, pairs: Sequence[tuple[UUID, UUID]]) -> list[Row]:
    """``user_id, viewer, is_online, last_seen`` of those pairs (user, viewer) in which the viewer may see the user's
    presence."""
    return await db.fetch(
        f"""SELECT users.id AS user_id, pairs.viewer, is_online, last_seen
            FROM unnest($1::uuid[], $2::uuid[]) AS pairs (user_id, viewer)
            JOIN users ON users.id = pairs.user_id WHERE {sees_presence("pairs.viewer")}""",
        [user for user, _ in pairs],
        [viewer for _, viewer in pairs],
    )


async def record_heartbeat(db: Database, instance_id: UUID) -> bool:
    """Record that the instance lives. Returns True if it must record all its users again: it was unknown, or silent for
    so long that a sweep may have removed some of them."""
    return bool(
        await db.value(
            f"""WITH before AS (SELECT beat_at FROM instances WHERE id = $1)
                INSERT INTO instances (id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET beat_at = now()
                RETURNING NOT EXISTS (
                    SELECT 1 FROM before WHERE beat_at > now() - interval '{STALE_SECONDS} seconds')""",
            instance_id,
        )
    )


async def arrive(db: Database, instance_id: UUID, users: Sequence[UUID]) -> list[UUID]:
    """Record that users have opened their first socket on the instance. Returns those who were offline until now. Locks
    rows in the order of their ids."""
    rows = await db.fetch(
        """WITH here AS (
               INSERT INTO connections (user_id, instance_id)
               SELECT users.id, $1 FROM users WHERE id = ANY ($2::uuid[]) ORDER BY id ON CONFLICT DO NOTHING
           ), before AS (
               SELECT id, is_online FROM users WHERE id = ANY ($2::uuid[]) ORDER BY id FOR NO KEY UPDATE
           )
           UPDATE users SET is_online = true, last_seen = now() FROM before WHERE users.id = before.id
           RETURNING users.id, before.is_online""",
        instance_id,
        list(users),
    )
    return [row["id"] for row in rows if not row["is_online"]]


# Lock in the same order everywhere, users by their ids and then their connections, as the erasure of an account does;
# otherwise the two could deadlock. Not FOR UPDATE: rows that refer to a user, in a chat or a message, need not wait.
_LOCK = "SELECT 1 FROM users WHERE id = ANY ($1::uuid[]) ORDER BY id FOR NO KEY UPDATE"


async def leave(db: Database, instance_id: UUID, users: Sequence[UUID]) -> list[UUID]:
    """Record that users have closed their last socket on the instance. Returns those who are now offline."""
    async with db.transaction():
        await db.execute(_LOCK, list(users))
        return await _remove_connections(db, [instance_id], users)


async def _remove_connections(db: Database, instances: Sequence[UUID], users: Sequence[UUID]) -> list[UUID]:
    """Delete the users' connections to the instances. Returns the users who are now offline. The caller has locked the
    users' rows, so that what the second statement sees stays true."""
    await db.execute(
        "DELETE FROM connections WHERE instance_id = ANY ($1::uuid[]) AND user_id = ANY ($2::uuid[])",
        list(instances),
        list(users),
    )
    rows = await db.fetch(
        """UPDATE users SET last_seen = now(),
               is_online = EXISTS (SELECT 1 FROM connections WHERE connections.user_id = users.id)
           WHERE id = ANY ($1::uuid[]) RETURNING id, is_online""",
        list(users),
    )
    online = {row["id"] for row in rows if row["is_online"]}
    return [user_id for user_id in users if user_id not in online]  # an account that was erased is offline, too


_DEAD = f"i.beat_at < now() - interval '{STALE_SECONDS} seconds'"
# Locks the instance: it can't come back, or add a user, while its users are removed.
_DEAD_CONNECTIONS = Due(
    "dead_connections",
    "c.instance_id, c.user_id",
    f"connections c JOIN instances i ON i.id = c.instance_id WHERE {_DEAD}",
    "i.beat_at",
    lock="FOR UPDATE OF i SKIP LOCKED",
)
_DEAD_INSTANCES = Due(
    "dead_instances",
    "i.id",
    f"instances i WHERE {_DEAD} AND NOT EXISTS (SELECT 1 FROM connections WHERE instance_id = i.id)",
    "i.beat_at",
)


def sweeper(db: Database, watch: Watch, offline: Callable[[Sequence[UUID]], None]) -> Sweeper:
    """Remove dead instances and their connections. Calls ``offline`` with the users who are now offline."""

    async def leave_all(limit: int) -> int:
        async with db.transaction():
            rows = await db.fetch(_DEAD_CONNECTIONS.batch, limit)
            users, instances = [row["user_id"] for row in rows], {row["instance_id"] for row in rows}
            await db.execute(_LOCK, users)
            gone = await _remove_connections(db, list(instances), users)
        if gone:
            offline(gone)
        return len(rows)

    async def forget(limit: int) -> int:
        return await db.execute(f"DELETE FROM instances WHERE id IN ({_DEAD_INSTANCES.batch})", limit)

    return Sweeper(db, watch, Sweep(_DEAD_CONNECTIONS, leave_all, BATCH), Sweep(_DEAD_INSTANCES, forget, BATCH))


async def sweep(db: Database) -> list[UUID]:
    """Remove dead instances. Returns the users who are now offline."""
    gone: list[UUID] = []
    await sweeper(db, UNWATCHED, gone.extend).run()
    return gone


async def stop(db: Database, instance_id: UUID) -> list[UUID]:
    """Remove an instance that stops in order. Returns the users who are now offline."""
    await db.do(Instance.update(beat_at=SQL("'-infinity'")).where(Instance.id == instance_id))
    return await sweep(db)
