"""Presence: which instance holds sockets of whom; it keeps ``users.is_online`` and ``users.last_seen`` true."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import peewee

from models.database import Database, Table
from models.users import User

STALE_SECONDS = 40  # an instance silent for this long is dead; with a sweep every 10 s that is within the 60 s promised


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


async def beat(db: Database, instance_id: UUID) -> bool:
    """Say that the instance lives; True when it was not known, so that it must tell its users again."""
    return bool(
        await db.value(
            "INSERT INTO instances (id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET beat_at = now() RETURNING xmax = 0",
            instance_id,
        )
    )


async def arrive(db: Database, instance_id: UUID, users: Sequence[UUID]) -> None:
    """The users' first sockets on the instance opened. Rows are locked in the order of their ids."""
    await db.execute(
        """WITH here AS (
               INSERT INTO connections (user_id, instance_id)
               SELECT users.id, $1 FROM users WHERE id = ANY ($2::uuid[]) ORDER BY id ON CONFLICT DO NOTHING
           )
           UPDATE users SET is_online = true, last_seen = now()
           WHERE id IN (SELECT id FROM users WHERE id = ANY ($2::uuid[]) ORDER BY id FOR UPDATE)""",
        instance_id,
        list(users),
    )


async def leave(db: Database, instance_id: UUID, users: Sequence[UUID]) -> None:
    """The users' last sockets on the instance closed; who has none anywhere is offline."""
    async with db.transaction():
        await db.execute(
            "DELETE FROM connections WHERE instance_id = $1 AND user_id = ANY ($2::uuid[])", instance_id, list(users)
        )
        await _offline(db, users)


async def _offline(db: Database, users: Sequence[UUID]) -> None:
    # Two statements: the second one's snapshot sees whatever arrived while the first waited for the rows.
    await db.execute("SELECT 1 FROM users WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE", list(users))
    await db.execute(
        """UPDATE users SET last_seen = now(),
               is_online = EXISTS (SELECT 1 FROM connections WHERE connections.user_id = users.id)
           WHERE id = ANY ($1::uuid[])""",
        list(users),
    )


async def sweep(db: Database) -> int:
    """Take dead instances away, with the presence they held; how many there were."""
    async with db.transaction():
        dead = await db.fetch(
            f"""SELECT id FROM instances WHERE beat_at < now() - interval '{STALE_SECONDS} seconds'
                FOR UPDATE SKIP LOCKED"""
        )
        if not dead:
            return 0
        ids = [row["id"] for row in dead]
        gone = await db.fetch("DELETE FROM connections WHERE instance_id = ANY ($1::uuid[]) RETURNING user_id", ids)
        await _offline(db, [row["user_id"] for row in gone])
        await db.execute("DELETE FROM instances WHERE id = ANY ($1::uuid[])", ids)
        return len(ids)


async def end(db: Database, instance_id: UUID) -> None:
    """The instance stops in order; its users are offline unless another one has them."""
    async with db.transaction():
        gone = await db.fetch("DELETE FROM connections WHERE instance_id = $1 RETURNING user_id", instance_id)
        await _offline(db, [row["user_id"] for row in gone])
        await db.execute("DELETE FROM instances WHERE id = $1", instance_id)
