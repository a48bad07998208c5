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


# Locks are taken in one order everywhere, users by their ids and then their connections, as an erasure does; else the
# two could wait for each other.
_LOCK = "SELECT 1 FROM users WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE"


async def leave(db: Database, instance_id: UUID, users: Sequence[UUID]) -> None:
    """The users' last sockets on the instance closed; who has none anywhere is offline."""
    async with db.transaction():
        await db.execute(_LOCK, list(users))
        await _take_away(db, [instance_id], users)


async def _take_away(db: Database, instances: Sequence[UUID], users: Sequence[UUID]) -> None:
    """Forget the users' connections to the instances. The rows of the users are locked, so that what the second
    statement sees stays true."""
    await db.execute(
        "DELETE FROM connections WHERE instance_id = ANY ($1::uuid[]) AND user_id = ANY ($2::uuid[])",
        list(instances),
        list(users),
    )
    await db.execute(
        """UPDATE users SET last_seen = now(),
               is_online = EXISTS (SELECT 1 FROM connections WHERE connections.user_id = users.id)
           WHERE id = ANY ($1::uuid[])""",
        list(users),
    )


async def _end(db: Database, instances: Sequence[UUID]) -> None:
    found = await db.fetch("SELECT DISTINCT user_id FROM connections WHERE instance_id = ANY ($1::uuid[])", instances)
    users = [row["user_id"] for row in found]
    await db.execute(_LOCK, users)
    await _take_away(db, instances, users)
    await db.execute("DELETE FROM instances WHERE id = ANY ($1::uuid[])", list(instances))


async def sweep(db: Database) -> int:
    """Take dead instances away, with the presence they held; how many there were."""
    async with db.transaction():
        dead = await db.fetch(
            f"""SELECT id FROM instances WHERE beat_at < now() - interval '{STALE_SECONDS} seconds'
                FOR UPDATE SKIP LOCKED"""
        )
        if not dead:
            return 0
        await _end(db, [row["id"] for row in dead])
        return len(dead)


async def end(db: Database, instance_id: UUID) -> None:
    """The instance stops in order; its users are offline unless another one has them."""
    async with db.transaction():
        await _end(db, [instance_id])
