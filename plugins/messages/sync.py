"""``/sync``: a walk through all events of a user's chats since a cursor (models/sync.py says why none is skipped)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from handlers.alerts import Alerts
from handlers.errors import ApiError, Fault, InvalidRequest
from models import chats, sync, views
from models.changes import Event
from models.database import Database, Row
from plugins.messages.cursor import Cursor
from plugins.messages.messages import shown


class CursorExpired(ApiError):
    status, code, message = 410, "cursor_expired", "This cursor is too old; take a new one and list your chats."


class Sync:
    def __init__(self, db: Database, alerts: Alerts, retention_days: int) -> None:
        self._db, self._alerts, self._retention = db, alerts, retention_days * 86_400

    async def page(self, user_id: UUID, text: str | None, limit: int) -> dict[str, Any]:
        """``events, deleted, cursor, has_more``: the next events since a cursor, chat by chat and in each by seq.
        Without a cursor the present one, and no events. Raises InvalidRequest, CursorExpired."""
        self._alerts.seen(user_id)  # before it reads: what is committed from now on may not be in the answer
        if text is None:
            moment, seen = await sync.now(self._db, user_id)
            return _answer([], Cursor(moment.epoch, int(time.time()), moment.horizon, seen), False)
        try:
            cursor = Cursor.read(text)
        except ValueError as error:
            raise InvalidRequest("Some fields are not valid.", details=[Fault("cursor", str(error))]) from None
        if cursor.age > self._retention:
            raise CursorExpired
        # Each span has an event to show, but for those that were seen already; one more tells whether there are others.
        most = limit + len(cursor.seen) + 2
        moment, spans = await sync.spans(self._db, user_id, cursor.since, cursor.at[0], most)
        if cursor.epoch != moment.epoch or cursor.since > moment.end:
            raise CursorExpired  # of a database that was put back to an earlier time
        target = moment.horizon if cursor.target is None else cursor.target
        reached, ranges, left = dict(cursor.reached), [], limit
        for number, span in enumerate(spans):
            first = max(span.first, _seen(cursor, span.chat_id) + 1)
            last = min(span.last, first + left - 1)
            if first <= last:
                ranges.append((span.chat_id, first, last))
                left -= last - first + 1
            if (last == span.last or first > span.last) and span.position >= target:
                # Seen to its end, which need not be its end for who asks a moment later.
                reached[span.chat_id] = max(reached.get(span.chat_id, 0), span.last)
            if left == 0 and (last < span.last or number + 1 < len(spans)):
                break
        else:
            number = len(spans)
        events = await self._shown(await sync.events(self._db, ranges)) if ranges else []
        has_more = number < len(spans) or len(spans) == most
        # On the first page of a walk; those that come meanwhile are not below its target, so the next walk tells them.
        deleted = await views.deletions(self._db, user_id, cursor.since) if cursor.target is None else []
        made = int(time.time())
        if has_more:
            at = (ranges[-1][0], ranges[-1][2]) if ranges else (spans[-1].chat_id, spans[-1].last)
            return _answer(events, replace(cursor, made=made, target=target, at=at, reached=reached), True, deleted)
        # A walk of many pages tells what was there as it began. What came meanwhile is told by the next one.
        return _answer(events, Cursor(moment.epoch, made, target, reached), cursor.target is not None, deleted)

    async def _shown(self, events: Sequence[tuple[UUID, Row]]) -> list[dict[str, Any]]:
        """Events as clients get them: messages and chats as they are now. Of a message that is gone, that is what is
        left to tell."""
        about = [row["message_id"] for _, row in events if row["type"] in ("message_new", "message_edited")]
        messages = await sync.messages(self._db, about) if about else {}
        threads: dict[UUID, dict[str, Any]] = {}
        answer = []
        for chat_id, row in events:
            kind, fields = row["type"], sync.fields_of(row)
            if kind in ("message_new", "message_edited"):
                message = messages.get(row["message_id"], "deleted")
                if isinstance(message, str):
                    kind, fields = "message_deleted", {"message_id": row["message_id"], "reason": message}
                else:
                    fields = {"message": shown(message)}
            elif kind in ("chat_created", "chat_updated", "chat_deleted"):
                if chat_id not in threads:
                    threads[chat_id] = await chats.thread(self._db, chat_id)
                fields = {"chat": threads[chat_id]}
            answer.append(Event(kind, chat_id, row["seq"], row["happened_at"], fields).frame)
        return answer


def _seen(cursor: Cursor, chat_id: UUID) -> int:
    """Up to which seq a chat was seen; in the middle of a walk also by its last page."""
    seen = cursor.seen.get(chat_id, 0)
    return max(seen, cursor.at[1]) if chat_id == cursor.at[0] else seen


def _answer(
    events: list[dict[str, Any]], cursor: Cursor, has_more: bool, deleted: Sequence[Row] = ()
) -> dict[str, Any]:
    answer: dict[str, Any] = {"events": events, "cursor": cursor.text(), "has_more": has_more}
    return {**answer, "deleted": [dict(row) for row in deleted]} if deleted else answer
