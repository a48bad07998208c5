"""Push preferences: which events wake a user's devices, and the quiet hours."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, time, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from handlers.wire.shapes import timestamp
from models import push
from models.database import Database
from plugins.push.shapes import KINDS, Preferences


class PushPreferences:
    """Reads and changes the push preferences of users."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def of(self, user_id: UUID) -> Preferences:
        row = await push.settings(self._db, user_id)
        if row is None:
            return Preferences()
        muted = [{"chat_id": chat_id, "until": until} for chat_id, until in row["muted_chats"].items()]
        return Preferences.model_validate(
            {"kinds": row["kinds"], "quiet_hours": row["quiet_hours"], "muted_chats": muted}
        )

    async def change(self, user_id: UUID, request: Preferences) -> Preferences:
        """Set the fields that were sent, leave the rest. Returns all preferences."""
        changes: dict[str, Any] = {}
        if "kinds" in request.model_fields_set:
            changes["kinds"] = list(dict.fromkeys(request.kinds))
        if "quiet_hours" in request.model_fields_set:
            changes["quiet_hours"] = request.quiet_hours and request.quiet_hours.model_dump()
        if "muted_chats" in request.model_fields_set:
            changes["muted_chats"] = {
                str(muted.chat_id): muted.until and timestamp(muted.until) for muted in request.muted_chats
            }
        await push.change_settings(self._db, user_id, KINDS, changes)
        return await self.of(user_id)


def quiet_until(hours: Mapping[str, Any], now: datetime) -> datetime | None:
    """Return the end of the quiet hours that contain ``now``; None outside of them. When clocks change they are an hour
    shorter or longer, like the night itself."""
    try:
        zone = ZoneInfo(hours["time_zone"])
    except (ZoneInfoNotFoundError, OSError):  # this machine's time zone database differs from the one that accepted it
        return None
    local = now.astimezone(zone)
    start, end = time.fromisoformat(hours["start"]), time.fromisoformat(hours["end"])
    if start == end:
        return None
    for day in (local.date(), local.date() - timedelta(days=1)):  # begun today, or last night
        last = day if start < end else day + timedelta(days=1)
        first = datetime.combine(day, start, zone)
        over = datetime.combine(last, end, zone)
        if first <= local < over:
            return over
    return None
