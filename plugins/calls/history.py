"""The history of a user's calls, as ``GET /calls`` shows it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from handlers.http.pages import PageCursor
from models import calls
from models.database import Database, Row


class History:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def calls(self, user_id: UUID, limit: int, before: PageCursor | None) -> list[dict[str, Any]]:
        """Up to ``limit`` calls, newest first."""
        return [_entry(user_id, row) for row in await calls.history(self._db, user_id, limit, before)]

    async def call(self, user_id: UUID, call_id: UUID) -> dict[str, Any] | None:
        """One call of the user; None if they have no such call."""
        row = await calls.detail(self._db, user_id, call_id)
        return _entry(user_id, row) if row else None


def _entry(user_id: UUID, row: Row) -> dict[str, Any]:
    """CallSession: the row's columns with ``direction``, ``peer`` (null if that account is gone) and
    ``duration_seconds`` (null for a call that was not answered or has not ended)."""
    answered, ended = row["accepted_at"], row["ended_at"]
    return {
        **{column: row[column] for column in calls.HISTORY_COLUMNS},
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
