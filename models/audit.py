"""The audit log: the operators' changes to accounts. A line is written in the transaction of its change."""

from __future__ import annotations

from uuid import UUID

import peewee

from models.database import Database, Table


class AuditEntry(Table):
    id = peewee.BigIntegerField(primary_key=True)
    at = peewee.DateTimeField()
    actor = peewee.TextField()
    action = peewee.TextField()
    user_id = peewee.UUIDField()
    public_id = peewee.TextField()

    class Meta:
        table_name = "audit_log"


async def note(db: Database, actor: str, action: str, user_id: UUID, public_id: str) -> None:
    """Write a line, in the caller's transaction. ``actor`` names the operator, ``action`` is a verb."""
    await db.do(AuditEntry.insert(actor=actor, action=action, user_id=user_id, public_id=public_id))
