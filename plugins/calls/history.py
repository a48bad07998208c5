"""The history of a user's calls, as ``GET /calls`` shows it."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Any
from uuid import UUID

from handlers.errors import Fault, InvalidRequest
from models import calls
from models.calls import CallSession
from models.database import Database, Row

Place = tuple[datetime, UUID]
COLUMNS = tuple(column for column in CallSession._meta.columns if column != "silent")


class History:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def page(self, user_id: UUID, limit: int, before: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """Up to ``limit`` calls, newest first, and the cursor of the next page if there is one."""
        rows = await calls.history(self._db, user_id, limit + 1, _place(before) if before else None)
        following = _cursor(rows[limit - 1]) if len(rows) > limit else None
        return [_entry(user_id, row) for row in rows[:limit]], following

    async def call(self, user_id: UUID, call_id: UUID) -> dict[str, Any] | None:
        """One call of the user's; None when there is no such call of theirs."""
        row = await calls.detail(self._db, user_id, call_id)
        return _entry(user_id, row) if row else None


def _entry(user_id: UUID, row: Row) -> dict[str, Any]:
    """CallSession: the row's columns with ``direction``, ``peer`` (null when that account is gone) and
    ``duration_seconds`` (null for a call that was not answered or has not ended)."""
    answered, ended = row["accepted_at"], row["ended_at"]
    return {
        **{column: row[column] for column in COLUMNS},
        "direction": "outgoing" if row["caller_id"] == user_id else "incoming",
        "peer": row["peer_id"]
        and {
            "user_id": row["peer_id"],
            "public_id": row["peer_public_id"],
            "display_name": row["peer_name"],
            "avatar_url": row["peer_avatar"],
        },
        "duration_seconds": round((ended - answered).total_seconds()) if answered and ended else None,
    }


def _cursor(row: Row) -> str:
    return base64.urlsafe_b64encode(f"{row['created_at'].isoformat()} {row['id']}".encode()).decode()


def _place(cursor: str) -> Place:
    try:
        moment, _, call_id = base64.b64decode(cursor, altchars=b"-_", validate=True).decode("ascii").partition(" ")
        place = datetime.fromisoformat(moment), UUID(call_id)
        if place[0].tzinfo is None:
            raise ValueError("a cursor bears its time zone")
    except (ValueError, binascii.Error):
        raise InvalidRequest("Some fields are not valid.", details=[Fault("before", "not a cursor of ours")]) from None
    return place
